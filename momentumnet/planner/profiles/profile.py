"""What a training step consists of, as it was measured: units in call order, what each keeps, and what each costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from momentumnet.planner.machine.host_link import ASKING, HostLink
from momentumnet.planner.profiles.choice import Front
from momentumnet.planner.profiles.flow import Flow
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Cost, Key, Unit
from momentumnet.recompute.saved import offloaded_tensors


@dataclass(frozen=True)
class Profile:
    """A training step, measured.

    Attributes:
        units: in call order.
        glue: the storages that code outside of all units keeps, with the number of units that run before.
        sizes: bytes of each storage.
        streams: those of the units.
        loss: the cost of the loss, behind the last unit.
        loss_held: bytes of its own that it holds until its backward.
        behind: bytes that the forward takes behind the last unit, above what is left of them when the model returns.
        backward_behind: bytes that backward takes there at most, loss included, above what is held when it begins; None
            where that was not measured as one.
        outputs: the storages of what the model returns. The training loop has a name for it, and so holds it until
            the step ends.
        returns_last: whether what the last unit returns is what the model does.
        flow: gradients between the units.
        named: by unit, the storages for which code around it has a name while its forward runs, beside its arguments.
        spaces: by place, bytes that layers outside of all units take in their forward beside what they return.
        estimated: whether times come from counts of operations, as there were no values to compute with.
        link: between the device and host memory; None if nothing is to be moved there.
        present: bytes of the gradients of parameters where they are there all the time: what the step makes is added
            to them, and no unit leaves any.
    """

    units: tuple[Unit, ...]
    glue: tuple[tuple[int, frozenset[Key]], ...]
    sizes: dict[Key, int]
    streams: tuple[StreamProfile, ...]
    loss: Cost
    loss_held: int = 0
    behind: int = 0
    backward_behind: int | None = None
    outputs: frozenset[Key] = frozenset()
    returns_last: bool = False
    flow: Flow = field(default_factory=Flow)
    spaces: tuple[int, ...] = ()
    named: tuple[frozenset[Key], ...] = ()
    estimated: bool = False
    link: HostLink | None = None
    present: int = 0

    def named_at(self, index: int, start: int, stop: int) -> frozenset[Key]:
        """The storages that have a name while a unit runs, but for those that units outside of these hold."""
        if not self.named or not self.named[index]:
            return frozenset()
        return frozenset(
            key for key in self.named[index] if all(start <= saver < stop for saver in self._savers.get(key, ()))
        )

    @cached_property
    def _savers(self) -> dict[Key, list[int]]:
        found: dict[Key, list[int]] = {}
        for index, unit in enumerate(self.units):
            for key in unit.saved:
                found.setdefault(key, []).append(index)
        return found

    def space_at(self, place: int) -> int:
        """Bytes of work space of the layers between the unit before ``place`` and the one there, in forward."""
        return self.spaces[place] if self.spaces else 0

    def glue_at(self, place: int) -> frozenset[Key]:
        """The storages that glue keeps between the unit before ``place`` and the one there."""
        return self._glue_by_place.get(place, frozenset())

    @cached_property
    def _glue_by_place(self) -> dict[int, frozenset[Key]]:
        found: dict[int, frozenset[Key]] = {}
        for place, keys in self.glue:
            found[place] = found.get(place, frozenset()) | keys
        return found

    def returned_behind(self, front: Front) -> int:
        """Bytes of what the model returns that nothing holds which is kept, by what stands behind; at least."""
        kept = self.units if front is Front.STORED else self.units[:-1]
        within = frozenset().union(*(unit.saved for unit in kept), *(keys for _, keys in self.glue))
        return self.bytes_of(self.outputs - within)

    @cached_property
    def momentum_streams(self) -> tuple[StreamProfile | None, ...]:
        """For each unit the momentum stream that it is a block of."""
        found = [None if unit.stream is None else self.streams[unit.stream] for unit in self.units]
        return tuple(stream if stream is not None and stream.gamma else None for stream in found)

    def is_momentum(self, index: int) -> bool:
        """Whether the unit is a block of a momentum stream."""
        return self.momentum_streams[index] is not None

    def end_of_stream(self, start: int) -> int | None:
        """Behind the last block of the momentum stream whose blocks begin here, in a row; None if none does."""
        if not self.is_momentum(start) or any(first <= start < stop for first, stop in self.wholes.items()):
            return None
        stop = start
        while stop < len(self.units) and self.units[stop].stream == self.units[start].stream:
            stop += 1
        return stop

    def ends_of_stream(self, index: int) -> tuple[int, int]:
        """The first and the last block of the momentum stream that a unit is a block of."""
        return self._ends[self.units[index].stream]

    @cached_property
    def _ends(self) -> dict[int | None, tuple[int, int]]:
        found: dict[int | None, tuple[int, int]] = {}
        for index, unit in enumerate(self.units):
            if self.is_momentum(index):
                found[unit.stream] = found.get(unit.stream, (index, index))[0], index
        return found

    def under_way(self, index: int) -> list[int]:
        """Of the other momentum streams that have begun in front of a unit and end behind it, the latest block."""
        if not any(first <= index < stop for first, stop in self._tangled):
            return []
        others = [at for at, (first, last) in self._ends.items() if first < index < last]
        streams = [stream for stream in others if stream != self.units[index].stream]
        return [max(at for at in range(index) if self.units[at].stream == stream) for stream in streams]

    @cached_property
    def _tangled(self) -> list[tuple[int, int]]:
        """Where momentum streams are whose blocks take turns with other units, as those of two streams side by side."""
        return merged(
            (first, last + 1)
            for stream, (first, last) in self._ends.items()
            if any(unit.stream != stream for unit in self.units[first : last + 1])
        )

    def end_of_whole(self, start: int) -> int | None:
        """Behind the last of the units that begin here and are chosen for as a whole; None if none do.

        A module comes in one way in all of its calls; and in a momentum stream the first blocks are recomputed and
        those behind them kept, also where its blocks take turns with other units.
        """
        return self.wholes.get(start)

    @cached_property
    def wholes(self) -> dict[int, int]:
        """Where units are chosen for as a whole: by the first one, the place behind the last.

        A momentum stream of which they have a block is theirs from end to end: it is cut in one place.
        """
        found, grown = list[tuple[int, int]](), merged([*self._repeated, *self._tangled])
        streams = [(first, last + 1) for first, last in self._ends.values()]
        while grown != found:
            found = grown
            met = (own for own in streams if any(own[0] < stop and start < own[1] for start, stop in found))
            grown = merged([*found, *met])
        return dict(found)

    @cached_property
    def _repeated(self) -> list[tuple[int, int]]:
        """Where modules run again and again."""
        first: dict[str, int] = {}
        found: list[tuple[int, int]] = []
        for index, unit in enumerate(self.units):
            start = min((first.setdefault(name, index) for name in unit.names), default=index)
            if start < index:
                found.append((start, index + 1))
        return merged(found)

    def bytes_of(self, keys: frozenset[Key]) -> int:
        """Bytes of storages."""
        return sum(self.sizes[key] for key in keys)

    def loss_bytes(self, casts: int, returned: int) -> int:
        """The most bytes at once behind the last unit, forward and backward, beside what is held.

        Args:
            casts: of weights, which autocast keeps until the loss is there.
            returned: of what the model returns, as far as nothing else holds it.
        """
        output = self.units[-1].cost.output_bytes if self.units and not self.returns_last else 0
        forward = casts + max(self.behind, max(output - returned, 0) + self.loss.forward_peak)
        if self.backward_behind is not None:
            backward = self.loss_held + self.backward_behind
        else:
            backward = max(self.loss_held + self.loss.backward_peak, self.flow.in_front(len(self.units)))
        return returned + max(forward, backward)

    @cached_property
    def casts_before(self) -> tuple[int, ...]:
        """By place, bytes of weights that autocast has cast in front of it."""
        return tuple(accumulate((unit.cost.cast_bytes for unit in self.units), initial=0))

    @cached_property
    def gradients_behind(self) -> tuple[int, ...]:
        """By place, bytes of gradients of parameters that are there when backward comes to it."""
        count = len(self.units)
        own = [*(unit.cost.parameter_bytes for unit in self.units), 0]
        found = accumulate(own[place] + self.flow.of_parameters(place) for place in range(count, -1, -1))
        return tuple(reversed(list(found)))

    def moved(self, index: int) -> frozenset[Key]:
        """Of what a unit saves, the storages that go to host memory if it is offloaded."""
        return self._moved[index]

    @cached_property
    def _moved(self) -> tuple[frozenset[Key], ...]:
        least = offloaded_tensors.SMALLEST
        return tuple(frozenset(key for key in unit.saved if self.sizes[key] >= least) for unit in self.units)

    def input_stays(self, index: int, *, front_is_stored: bool) -> bool:
        """Whether all that a unit is given is held without it: by the caller, by code around it, or in front."""
        entry, front = self.units[index].entry, self.units[index - 1].saved if front_is_stored else frozenset()
        return not self.is_momentum(index) and all(not self.sizes[key] or key in front for key in entry)

    def exposed_seconds(self, index: int, *, behind_is_offloaded: bool) -> float:
        """The time by which the copies of an offloaded unit exceed what is computed beside them, and to ask for them.

        On the way out that is the unit's own forward, and the one of the unit behind, unless that is offloaded as well
        and needs the link for itself; on the way back, the backward of the unit behind. This takes no account of when
        in a unit its tensors are saved and needed, of copies of neighbours that wait for one another, nor of a
        computation that is slower while memory is being copied; and it counts a storage that two units save for each
        of them.
        """
        if self.link is None:
            return 0.0
        count, own, behind = self.bytes_of(self.moved(index)), self.units[index].cost, self.units[index + 1].cost
        beside = own.forward_seconds + (0.0 if behind_is_offloaded else behind.forward_seconds)
        out, back = count / self.link.to_host - beside, count / self.link.to_device - behind.backward_seconds
        return max(0.0, out) + max(0.0, back) + 2 * ASKING * len(self.moved(index))

    @property
    def stored_seconds(self) -> float:
        """Of a step that keeps all activations, without the steps of the streams' states."""
        costs = [*(unit.cost for unit in self.units), self.loss]
        return sum(cost.forward_seconds + cost.backward_seconds for cost in costs)

    @property
    def momentum_seconds(self) -> float:
        """That the rule of the streams takes, whatever is recomputed: a step forward and one of its gradients."""
        return sum(2 * stream.step_seconds for stream in self.momentum_streams if stream is not None)


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges without those that meet: of these, what reaches from the first of them to the last."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
