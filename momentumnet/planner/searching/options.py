"""The options of a plan: the ways to treat units in a row, what each takes and what it costs in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from momentumnet.planner.profiles.alike import kinds_of
from momentumnet.planner.profiles.choice import KEPT, Choice, Front, Way, choice_of_each
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Handover
from momentumnet.planner.searching.cuts import cuts_of
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.simulate import Simulation, simulated
from momentumnet.planner.searching.taken import Taken, taken_by

# Units that are recomputed together from one input, at most.
LONGEST_SEGMENT = 16
# Of units that are chosen for as a whole the first ones are recomputed, down to one of about so many places.
CUTS = 32
# Of a stream's blocks that are kept, those that are offloaded are counted in these shares: each is an option.
SHARES = 4


class Option(NamedTuple):
    """One way to treat units in a row, behind a certain front.

    Attributes:
        choices: for these units.
        held: bytes that it holds until its backward.
        need: most bytes in its forward and backward, beside those that are held in front of it.
        seconds: that it takes more than keeping everything.
        behind: what it is for the unit behind it.
    """

    choices: tuple[Choice, ...]
    held: int
    need: int
    seconds: float
    behind: Front


class Options:
    """All options for the units of a profile, by the unit that they begin at and what stands in front of it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        count = len(profile.units)
        glue = (profile.bytes_of(profile.glue_at(at)) for at in range(count + 1))
        # By place, what is there whatever is chosen.
        self.always = list(accumulate(glue, initial=profile.present))[1:]
        self.loss_bytes = {  # by what stands behind all units, at most
            front: profile.loss_bytes(profile.casts_before[count], profile.returned_behind(front)) for front in Front
        }
        self._found: dict[tuple[int, Front], list[Option]] = {}
        self._kinds = kinds_of(profile)
        self._taken: dict[object, Taken] = {}
        # The choices of the least time that were found, by budget and cells; `search` asks for them again and again.
        self.found_quickest: dict[tuple[int, int], list[Choice] | None] = {}

    def at(self, start: int, front: Front) -> list[Option]:
        """Those that begin at a unit."""
        if (start, front) not in self._found:
            stop = self.profile.end_of_stream(start)
            if stop is not None:
                cuts = cuts_of(self.profile, start, stop, front)
                self._taken.update({(cut, front): taken for cut, taken in cuts.items()})
            self._found[start, front] = [self._option(choices, front) for choices in self._choices(start)]
        return self._found[start, front]

    def _choices(self, start: int) -> Iterator[tuple[Choice, ...]]:
        units = self.profile.units
        stop = self.profile.end_of_stream(start)
        if stop is not None:
            first = next((at for at in range(start, stop) if not self._is_idle(at)), stop)  # those before it are kept
            for middle in (start, *range(first + 1, stop + 1)):
                for tail in self._tails(middle, stop):
                    for way in (Way.REVERSIBLE, Way.CHECKPOINTED) if middle > start else (Way.STORED,):
                        yield (*((Choice(start, middle, way),) if middle > start else ()), *tail)
            return
        stop = self.profile.end_of_whole(start)
        if stop is not None:
            yield (Choice(start, stop, Way.STORED),)
            if not all(map(self._is_idle, range(start, stop))):
                yield from self._as_a_whole(start, stop)
            return
        yield (Choice(start, start + 1, Way.STORED),)
        if self.profile.link is not None and start + 1 < len(units) and self.profile.moved(start):
            yield (Choice(start, start + 1, Way.OFFLOADED),)
        for end in range(start + 1, min(len(units), start + LONGEST_SEGMENT) + 1):
            if end > start + 1 and not self._goes_on(end - 1):
                break
            if end > start + 1 or not self._is_idle(start):
                yield (Choice(start, end, Way.CHECKPOINTED),)

    def _as_a_whole(self, start: int, stop: int) -> Iterator[tuple[Choice, ...]]:
        """Choices where streams and parts take turns, or modules run again and again.

        The first units are recomputed, in each of their calls, and those behind them stored.
        """
        ranks = self._ranks(start, stop)
        blocks = any(map(self.profile.is_momentum, range(start, stop)))
        count = max(ranks) + 1
        for cut in sorted({count, *range(1, count, max(1, count // CUTS))}):
            for in_streams in (Way.REVERSIBLE, Way.CHECKPOINTED) if blocks else (Way.CHECKPOINTED,):
                for outside in (Way.STORED, Way.CHECKPOINTED) if blocks else (Way.CHECKPOINTED,):
                    ways = (in_streams if self.profile.is_momentum(at) else outside for at in range(start, stop))
                    yield tuple(
                        Choice(at, at + 1, way if rank < cut else Way.STORED)
                        for at, rank, way in zip(range(start, stop), ranks, ways, strict=True)
                    )

    def _ranks(self, start: int, stop: int) -> list[int]:
        """The places of units in the order in which they run first: units that come in one way have one.

        These are those that share a module; of blocks of a momentum stream, those at one place of it.
        """
        calls: Counter[tuple[int | None, str]] = Counter()
        rank_of: dict[tuple[str, int], int] = {}
        first_keys = []
        for at in range(start, stop):
            unit, is_block = self.profile.units[at], self.profile.is_momentum(at)
            keys = [(name, calls[unit.stream, name] if is_block else 0) for name in unit.names]
            calls.update((unit.stream, name) for name in unit.names)
            known = {rank_of[key] for key in keys if key in rank_of}
            rank = min(known, default=at)
            rank_of = {key: rank if found in known else found for key, found in rank_of.items()}
            rank_of |= dict.fromkeys(keys, rank)
            first_keys.append(keys[0])
        places = {rank: place for place, rank in enumerate(sorted(set(rank_of.values())))}
        return [places[rank_of[key]] for key in first_keys]

    def _is_idle(self, index: int) -> bool:
        """Whether a unit keeps nothing and is never recomputed, as a frozen one: then its input is not kept either."""
        unit = self.profile.units[index]
        return not (unit.saved or unit.cost.has_backward)

    def _goes_on(self, index: int) -> bool:
        """Whether a unit can be recomputed together with those in front of it."""
        in_one_way = self.profile.is_momentum(index) or self.profile.end_of_whole(index) is not None
        unit = self.profile.units[index]
        return unit.handover is Handover.ALL and unit.cost.has_backward and not in_one_way

    def _tails(self, middle: int, stop: int) -> Iterator[tuple[Choice, ...]]:
        """Choices for the last blocks of a stream, which are kept; of these the first ones may be offloaded."""
        yield (Choice(middle, stop, Way.STORED),) if middle < stop else ()
        if self.profile.link is None:
            return
        for cut in sorted(
            {middle + -(-share * (stop - middle) // SHARES) for share in range(1, SHARES + 1)} - {middle}
        ):
            if cut < len(self.profile.units) and any(map(self.profile.moved, range(middle, cut))):
                tail = (Choice(cut, stop, Way.STORED),) if cut < stop else ()
                yield (Choice(middle, cut, Way.OFFLOADED), *tail)

    def _option(self, choices: tuple[Choice, ...], front: Front) -> Option:
        start, stop = choices[0].start, choices[-1].stop
        key: object = (choices, front)
        in_one_way = self.profile.is_momentum(start) or self.profile.end_of_whole(start) is not None
        if not in_one_way and self.profile.link is None:
            # Units whose kinds tell all, and as many of them by each choice.
            kinds = self._kinds[start - 1 if front is Front.STORED else start : stop]
            key = (choices[0].way, len(choices), front, kinds)
        taken = self._taken[key] = self._taken.get(key) or taken_by(self.profile, choices, front)
        need = max(
            taken.forward + self.profile.casts_before[start], taken.backward + self.profile.gradients_behind[stop]
        )
        return Option(choices, taken.held, need, self.total_seconds(choices, front), taken.behind)

    def above(self, choices: Sequence[Choice], budget: int) -> int:
        """By how many bytes more than a budget choices take for which its options have room.

        None, but for what code around units has a name for, and the model returns: of what other units hold of that,
        an option does not know.
        """
        return max(0, peak_of(simulated(self.profile, choices)).bytes - budget)

    def held(self, choices: Sequence[Choice]) -> list[int]:
        """For each unit the bytes that it adds to what is held when the forward ends."""
        simulation = Simulation(self.profile, choices)
        simulation.forward()
        return simulation.added

    def total_seconds(self, choices: Sequence[Choice], front: Front = Front.NOTHING) -> float:
        """What choices for units in a row take more than keeping everything.

        The time of copies is that of the unit behind the one that they are of: also if that stands in front of all.
        """
        seconds = sum(self.seconds(choice) for choice in choices)
        if self.profile.link is None:
            return seconds
        start, ways = choices[0].start, [choice.way for choice in choice_of_each(choices)]
        ways.insert(0, Way.OFFLOADED if front is Front.OFFLOADED else Way.STORED)
        return seconds + sum(
            self.profile.exposed_seconds(start - 1 + place, behind_is_offloaded=behind is Way.OFFLOADED)
            for place, (way, behind) in enumerate(pairwise(ways))
            if way is Way.OFFLOADED
        )

    def seconds(self, choice: Choice) -> float:
        """What the choice takes more than keeping everything, without copies."""
        if choice.way in KEPT:
            return 0.0
        seconds, units = 0.0, self.profile.units[choice.start : choice.stop]
        together = not self.profile.is_momentum(choice.start) and units[-1].cost.has_backward
        for unit in units:
            if not (together or unit.cost.has_backward):
                continue
            seconds += unit.cost.forward_seconds
            if choice.way is Way.REVERSIBLE and unit.stream is not None:
                seconds += self.profile.streams[unit.stream].undo_seconds
        return seconds
