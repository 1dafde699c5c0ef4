"""The cuts of a momentum stream: its blocks in front of a place come in one way, those behind it are stored.

Every place is an option of the search. To simulate each by itself takes the square of the number of blocks; but two
cuts differ between their places alone. What the blocks in front take is what they take in every later cut, and what
those behind take is what they take where all blocks are stored, but for a number of bytes that is held all the while.
So one walk over the stored blocks, and one for each way in front, tell all cuts.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from momentumnet.planner.profiles.choice import Choice, Front, Way
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Key
from momentumnet.planner.searching.taken import Fullest, Taken, taken_by

Cut = tuple[Choice, Choice]


def cuts_of(profile: Profile, start: int, stop: int, front: Front) -> dict[Cut, Taken]:
    """What each cut of a stream takes, behind this front.

    None where blocks that are no neighbours share storages (what is held by one changes what the other adds then), or
    where blocks may be offloaded, whose tensors move while others run.

    Args:
        profile: of the step.
        start: the stream's first block.
        stop: behind its last one.
        front: what stands in front of it.
    """
    if stop - start < 2 or profile.link is not None or not _shared_by_neighbours(profile, start, stop):
        return {}
    stored = _Stored(profile, start, stop, front)
    return stored.cut_behind(Way.REVERSIBLE) | stored.cut_behind(Way.CHECKPOINTED)


def _shared_by_neighbours(profile: Profile, start: int, stop: int) -> bool:
    """Whether no storage is used by blocks, or glue in front of them, that lie farther from one another than one."""
    last: dict[Key, int] = {}
    first: dict[Key, int] = {}
    for at in range(start, stop):
        for key in profile.units[at].saved | profile.units[at].entry | profile.glue_at(at):
            first.setdefault(key, at)
            last[key] = at
    return all(at - first[key] <= 1 for key, at in last.items())


class _Stored:
    """A stream of which all is stored, block by block: what stands behind a cut is a part of it.

    Args:
        profile: of the step.
        start: the stream's first block.
        stop: behind its last one.
        front: what stands in front of it.
    """

    def __init__(self, profile: Profile, start: int, stop: int, front: Front) -> None:
        self._profile, self._start, self._stop, self._front = profile, start, stop, front
        choices = (Choice(start, stop, Way.STORED),)
        self._taken = taken_by(profile, choices, front)
        walk = Fullest(profile, choices, front)
        forward, backward = [0] * stop, [0] * stop  # the most while a block runs
        # What is held behind the forward of a block, and in front of its backward, and gradients that are there then.
        self._held, self._again, self._gradients = [0] * stop, [0] * stop, [0] * stop
        for at in range(start, stop):
            walk.forward_of(at)
            forward[at], self._held[at] = walk.passed(), walk.held.total
        walk.begin_backward()
        for at in reversed(range(start, stop)):
            self._again[at], self._gradients[at] = walk.held.total, walk.gradients
            walk.backward_of(at)
            backward[at] = walk.passed()
        self._forward, self._backward = _most_from(forward), _most_from(backward)

    def cut_behind(self, way: Way) -> dict[Cut, Taken]:
        """The cuts behind blocks that come in this way."""
        start, stop, profile = self._start, self._stop, self._profile
        places = range(start + 1, stop)
        walk = _Front(profile, [Choice(start, stop, way)], self._front)
        forwards = [self._forward_cut(walk, place) for place in places]
        walk.begin_backward()
        backwards = [self._backward_cut(walk, place) for place in reversed(places)][::-1]
        # Of all blocks in front of a place.
        front = accumulate((most.front for most in forwards), max), accumulate((most.front for most in backwards), max)
        found = {}
        for place, forward, backward, *most in zip(places, forwards, backwards, *front, strict=True):
            found[Choice(start, place, way), Choice(place, stop, Way.STORED)] = Taken(
                self._taken.held + forward.more,
                max(most[0], forward.behind) - profile.casts_before[start],
                max(most[1], backward.behind) - profile.gradients_behind[stop],
                self._taken.behind,
            )
        return found

    def _forward_cut(self, walk: _Front, place: int) -> _Most:
        """Walks from the place before to this one; then the forward of those behind it."""
        walk.forward_of(place - 1)
        front, waiting = walk.passed(), walk.at_rest(place)
        more = walk.forward_stored(place, waiting) + waiting - self._held[place]
        behind = walk.passed()
        if place + 1 < self._stop:
            casts = walk.casts - self._profile.casts_before[self._start]
            behind = max(behind, self._forward[place + 1] + more + casts)
        return _Most(front, behind, more)

    def _backward_cut(self, walk: _Front, place: int) -> _Most:
        """The backward of those behind the place; then walks from there to the place before."""
        waiting = walk.at_rest(place)
        walk.gradients = self._gradients[place]
        more = walk.backward_stored(place, waiting) + waiting - self._again[place]
        behind = walk.passed()
        if place + 1 < self._stop:
            behind = max(behind, self._backward[place + 1] + more)
        walk.backward_of(place - 1)
        return _Most(walk.passed(), behind, more)


class _Most(NamedTuple):
    """The most bytes at once while the block in front of a cut runs, and those behind it.

    ``more`` is by how much more is held than where all blocks are stored.
    """

    front: int
    behind: int
    more: int


class _Front(Fullest):
    """The blocks in front of a cut, which moves; the first one behind it can be looked at as one that is stored."""

    _looked_at: int | None = None

    def choice(self, index: int) -> Choice:
        return Choice(index, index + 1, Way.STORED) if index == self._looked_at else super().choice(index)

    def rewound(self, index: int) -> tuple[int, int]:
        return (0, 0) if index == self._looked_at else super().rewound(index)

    def at_rest(self, place: int) -> int:
        """Bytes of the state while it waits for the backward of the blocks in front of a place."""
        stream = self.stream_of(self.start)
        rewinds = stream is not None and self.choice(self.start).way is Way.REVERSIBLE
        return stream.at_rest(place - self.start) if stream is not None and rewinds else 0

    def forward_stored(self, index: int, states: int) -> int:
        """The forward of a block that is stored, and is forgotten again; returns what is held behind it."""
        self._looked_at, self.states = index, states
        self.forward_of(index)
        held = self.held.total
        self._looked_at, self.states = None, 0
        self.held.remove(self.units[index].saved)
        self.held.remove(self.profile.glue_at(index))
        return held

    def backward_stored(self, index: int, states: int) -> int:
        """The backward of a block that was stored; returns what is held in front of it."""
        self._looked_at, self.states = index, states
        self.held.add(self.profile.glue_at(index))
        self.held.add(self.units[index].saved)
        held = self.held.total
        self.backward_of(index)
        self._looked_at, self.states = None, 0
        return held


def _most_from(values: list[int]) -> list[int]:
    """By place, the most of those there and behind."""
    return list(accumulate(reversed(values), max))[::-1]
