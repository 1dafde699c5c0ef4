"""The bytes of a training step over its timeline, forward and backward, for a choice for each unit.

Counted is what the step allocates, as `momentumnet.measure_memory` does: activations, states, work space, gradients of
activations, and gradients of parameters as they come; neither parameters nor what an optimizer keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.planner.profiles.choice import KEPT, Choice, Front, Way, choice_of_each
from momentumnet.planner.profiles.held import Held
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Handover, Key
from momentumnet.planner.searching.moments import Moment


def simulated(profile: Profile, choices: Sequence[Choice]) -> list[Moment]:
    """The moments of a step, in order."""
    simulation = Simulation(profile, choices)
    simulation.step()
    return simulation.moments


def held_between(profile: Profile, choices: Sequence[Choice]) -> int:
    """The bytes that are held between forward and backward."""
    simulation = Simulation(profile, choices)
    simulation.forward()
    simulation.held.add(profile.glue_at(0) | profile.glue_at(len(profile.units)) | profile.outputs)
    return simulation.held.total + simulation.states + profile.loss_held


def offloaded_storages(profile: Profile, choices: Sequence[Choice]) -> frozenset[Key]:
    """The storages that are in host memory between forward and backward."""
    moved = (profile.moved(at) for at, choice in enumerate(choice_of_each(choices)) if choice.way is Way.OFFLOADED)
    return frozenset().union(*moved)


class Simulation:
    """A step, or its part in some units: what is held moves with it.

    Args:
        profile: of the step.
        choices: for units in a row.
        front: what stands in front of the first of them; what that holds, and glue there, is not counted.
    """

    def __init__(self, profile: Profile, choices: Sequence[Choice], front: Front = Front.NOTHING) -> None:
        self.profile, self.units = profile, profile.units
        self.start, self.stop = (choices[0].start, choices[-1].stop) if choices else (0, 0)
        self._choices = choice_of_each(choices)
        self.held = Held(profile.sizes)
        if front is Front.STORED:
            self.held.add(self.units[self.start - 1].saved)
        if front is Front.OFFLOADED:
            self.held.add(self.units[self.start - 1].saved - profile.moved(self.start - 1))
        self.before = self.held.total
        self.states = 0  # bytes of streams' states
        self.gradients = self._present = 0  # of parameters; and those of them that are there all the time
        self.moments: list[Moment] = []
        # Weights that autocast has cast wait for the loss; a unit that is stored has them among what it keeps.
        self.casts = profile.casts_before[self.start]
        self.added: list[int] = []  # by the forward of each unit to what is held
        # Of a unit in front that is offloaded: there until the first one has run, and again in its backward.
        self._moves = profile.link is not None
        self._leaving = profile.moved(self.start - 1) if front is Front.OFFLOADED else frozenset[Key]()
        self.held.add(self._leaving)
        self._rewound = self._count_rewound()
        self._given = {self.start} if front is Front.GIVEN else set()
        self._given |= {index + 1 for index in range(self.start, self.stop) if self.gives_again(index)}
        self._given = {
            index
            for index in self._given
            if index < len(self.units) and self.units[index].handover is not Handover.NOTHING
        }

    def _count_rewound(self) -> dict[int, tuple[int, int]]:
        """By index of those that are rewound; see `rewound`."""
        of_stream: dict[int | None, list[int]] = {}
        for index in range(self.start, self.stop):
            if self.choice(index).way is Way.REVERSIBLE:
                of_stream.setdefault(self.units[index].stream, []).append(index)
        return {
            index: (steps, len(places)) for places in of_stream.values() for steps, index in enumerate(places, start=1)
        }

    def rewound(self, index: int) -> tuple[int, int]:
        """Of a block that is rewound, how many steps of its stream are, up to it and in all; else none."""
        return self._rewound.get(index, (0, 0))

    def choice(self, index: int) -> Choice:
        """That of a unit."""
        return self._choices[index - self.start]

    def stream_of(self, index: int) -> StreamProfile | None:
        """The momentum stream that the unit is a block of."""
        return self.profile.momentum_streams[index]

    def begun_with(self, index: int) -> frozenset[Key]:
        """What the unit's stream began with, which a pass that is not stored can be played again from."""
        stream, unit = self.stream_of(index), self.units[index]
        is_stored = self.choice(index).way in KEPT and unit.cost.has_backward
        return frozenset() if stream is None or is_stored else stream.start

    def gives_again(self, index: int) -> bool:
        """Whether the unit is a stream's last block, whose state gives what the stream returns again."""
        stream = self.stream_of(index)
        exact = stream is not None and stream.word is not None and not stream.together
        return exact and self._is_last(index) and self.choice(index).way is Way.REVERSIBLE

    def _is_last(self, index: int) -> bool:
        """Whether the unit is the last block of its stream."""
        return self.profile.ends_of_stream(index)[1] == index

    def note(self, phase: str, index: int, extra: int) -> None:
        """A moment at which so many bytes are there beside those that are held."""
        self.take(phase, index, self.held.total - self.before + self.states + self.gradients + extra)

    def take(self, phase: str, index: int, total: int) -> None:
        """A moment of so many bytes."""
        self.moments.append(Moment(phase, index, total))

    def step(self) -> None:
        """A whole step, of all units."""
        self.gradients = self._present = self.profile.present
        self.held.add(self.profile.glue_at(0))
        self.forward()
        self.loss()
        self.backward()

    def forward(self) -> None:
        """All units, in order."""
        for index in range(self.start, self.stop):
            self.forward_of(index)

    def forward_of(self, index: int) -> None:
        """A unit, when those in front of it have run."""
        self.held.add(self.profile.glue_at(index) if index > self.start else ())
        unit, choice, stream = self.units[index], self.choice(index), self.stream_of(index)
        there = unit.entry | self.profile.named_at(index, self.start, self.stop) | self.begun_with(index)
        extra = self.held.missing(there) + self.casts + self._under_way(index)
        steps, whole = self.rewound(index)
        keeps = choice.way in KEPT
        if stream is not None:
            extra += stream.in_motion + stream.put_aside(steps)
            # The x behind it is made when it has run, and let go of what it does not keep.
            extra += unit.cost.output_bytes if keeps else 0
            self.note("forward", index, extra + (0 if keeps else 2 * unit.cost.output_bytes))
        if space := self.profile.space_at(index):
            self.note("forward", index, self.held.missing(unit.entry) + self.casts + space)
        before = self.held.total + self.states
        self.note("forward", index, extra + (unit.cost.forward_peak if keeps else unit.cost.free_peak))
        if keeps:
            self.held.add(unit.saved)
            self.held.add(unit.filled)  # to the end of the step, as the output holds them
        else:
            self.held.add(self._kept_of_input(index))
        if stream is not None and self._is_last(index):
            self.note("forward", index, stream.at_end(whole) + unit.cost.output_bytes + self.casts)
        if stream is not None and steps and steps == whole:
            self.states += stream.at_rest(whole)
        self.casts += 0 if choice.way is Way.STORED else unit.cost.cast_bytes
        self.added.append(self.held.total + self.states - before)
        if self._moves:
            self._leave(index - 1)

    def _in_front(self, index: int) -> frozenset[Key]:
        """What the unit ``index``, which is in front of another one, moves to host memory."""
        if index < self.start:
            return self._leaving
        return self.profile.moved(index) if self.choice(index).way is Way.OFFLOADED else frozenset()

    def _leave(self, index: int) -> None:
        """The unit behind this one has run."""
        before = self.held.total
        self.held.remove(self._in_front(index))
        if index >= self.start:
            self.added[index - self.start] -= before - self.held.total

    def held_behind(self) -> int:
        """The bytes that are held when the unit behind the last one has run, without its own."""
        leaving = self._in_front(self.stop - 1) if self._moves else frozenset()
        self.held.remove(leaving)
        held = self.held.total - self.before + self.states
        self.held.add(leaving)
        return held

    def _kept_of_input(self, index: int) -> frozenset[Key]:
        """The arguments that a unit which is recomputed keeps; a state gives what the stream carries again."""
        unit = self.units[index]
        if self.choice(index).way is Way.REVERSIBLE:
            return unit.beside
        return unit.entry if self._keeps_input(index) else frozenset()

    def _keeps_input(self, index: int) -> bool:
        choice = self.choice(index)
        # A momentum stream's blocks are recomputed one by one, each from its own input.
        alone = self.stream_of(index) is not None
        if choice.way is not Way.CHECKPOINTED or not (alone or choice.start == index) or index in self._given:
            return False
        together = self.units[index : index + 1 if alone else choice.stop]
        return any(unit.cost.has_backward for unit in together)

    def loss(self) -> None:
        """Behind the last unit."""
        self.held.add(self.profile.glue_at(len(self.units)))
        returned = self.held.missing(self.profile.outputs)
        self.note("loss", len(self.units), self.profile.loss_bytes(self.casts, returned))
        self.held.remove(self.profile.glue_at(len(self.units)))

    def backward(self) -> None:
        """All units, the last one first."""
        self.begin_backward()
        for index in reversed(range(self.start, self.stop)):
            self.backward_of(index)

    def begin_backward(self) -> None:
        """Behind the last unit, or all that is behind it in a step."""
        self.held.add(self.profile.outputs)
        self.gradients = self._present + self.profile.gradients_behind[self.stop]

    def backward_of(self, index: int) -> None:
        """A unit, when those behind it are done; what its forward has added to what is held is gone then."""
        unit, choice = self.units[index], self.choice(index)
        if self._moves:
            self.held.add(self._in_front(index - 1))
        stream = self.stream_of(index)
        extra = self._of_stream(index) + self.profile.flow.around(index) + self._under_way(index, backward=True)
        if choice.way not in KEPT:
            given = stream.position if stream is not None and choice.way is Way.REVERSIBLE else 0
            self._recompute(index, choice, extra + unit.cost.output_bytes + given)
        # Measured by itself, the unit lets go of what the model returns.
        stays = self.profile.bytes_of(unit.saved & self.profile.outputs)
        ahead = 0 if stream is None else stream.ahead(self.rewound(index)[0])
        self.note("backward", index, extra + stays + ahead + self._own_backward(index))
        if unit.cost.has_backward:  # else the model's output keeps what is there, and nothing is recomputed
            self.held.remove(unit.saved)
        if choice.way not in KEPT:
            self.held.remove(self._kept_of_input(index))
        self.note("backward", index, self.profile.flow.summed(index))
        self.gradients += unit.cost.parameter_bytes
        self.note("backward", index, self.profile.flow.in_front(index))
        self.gradients += self.profile.flow.of_parameters(index)
        self.held.remove(self.profile.glue_at(index) if index > self.start else ())

    def _own_backward(self, index: int) -> int:
        """The most bytes in the backward of a unit, beside what waits meanwhile."""
        cost, stream = self.units[index].cost, self.stream_of(index)
        peak = max(cost.backward_peak, cost.again_peak if self.profile.flow.comes_again(index) else 0)
        if stream is None or stream.together or not cost.stream_peak or not self.profile.flow.reaches_in_front(index):
            return peak
        # The gradient of x that a block makes first is added to the one that waits.
        return peak - (cost.backward_peak + stream.position - cost.stream_peak)

    def _of_stream(self, index: int) -> int:
        """Bytes of a block's stream in backward: the gradients that wait there, and its state, unpacked."""
        stream = self.stream_of(index)
        if stream is None:
            return 0
        gradients = stream.gradients(
            first=self.profile.ends_of_stream(index)[0] == index,
            handed_on=self.profile.flow.reaches_in_front(index),
        )
        steps, whole = self.rewound(index)
        if not steps:
            return gradients
        if steps == whole:
            self.states -= stream.at_rest(whole)
        return gradients + stream.in_motion + stream.put_aside(steps)

    def _under_way(self, index: int, *, backward: bool = False) -> int:
        """Bytes of other streams' states, and in backward of their gradients of v, between two of their blocks."""
        found = 0
        for block in self.profile.under_way(index):
            stream, (steps, whole) = self.stream_of(block), self.rewound(block)
            if stream is None:
                continue
            if not backward or 0 < steps < whole:
                found += stream.in_motion + stream.put_aside(steps)
            if backward and self.profile.flow.reaches_in_front(block):
                found += stream.gradients(first=False, handed_on=True) - stream.position
        return found

    def _recompute(self, index: int, choice: Choice, extra: int) -> None:
        """The saved tensors of a unit, or of all that are recomputed with it, are there again."""
        together = choice.way is Way.CHECKPOINTED and self.stream_of(index) is None
        if together and index != choice.stop - 1:
            return
        if not self.units[index].cost.has_backward:
            return
        for at in range(choice.start if together else index, index + 1):
            unit = self.units[at]
            given = self.held.missing(unit.entry) if together else 0  # by the unit in front, and saved by none of both
            self.note("recompute", at, extra + given + unit.cost.forward_peak)
            if unit.cost.has_backward:  # else it runs again for those behind it, and nobody takes out what it saves
                self.held.add(unit.saved)
