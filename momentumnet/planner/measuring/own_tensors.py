"""Of what a momentum stream makes a tensor of its own: one storage in the trace is two in the converted network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Key, Unit


class OwnTensors:
    """The units where the blocks of streams move by momentum, and what code outside of all units keeps then.

    In the trace a block's output is the input of the next one; in a momentum stream that is x after the step, which the
    next block, and whoever comes behind it, is given. The first block is given x from the state. Blocks fill no caches.

    Args:
        step: the step as it was traced.
        glue: the storages that code outside of all units keeps, with the number of units that run before.
        streams: those of the units.

    Attributes:
        units: with storages of their own.
        glue: likewise.
        sizes: with theirs.
        outputs: the storages of what the model returns.
        stand_ins: those that stand in the place of others, for who has a name for them.
    """

    def __init__(self, step: Profile, glue: Mapping[Key, int], streams: Sequence[StreamProfile]) -> None:
        self.units: list[Unit] = []
        self.glue, self.sizes, self.stand_ins = dict(glue), dict(step.sizes), dict[Key, Key]()
        self.outputs = step.outputs
        self._streams, self._traced = streams, step.units
        self._numbers = count(min([0, *step.sizes]) - 1, -1)
        self._uses = Counter(key for unit in step.units for key in unit.entry | unit.saved)
        for index, unit in enumerate(step.units):
            own = self._given_to(index)
            entry, saved = (frozenset(own.get(key, key) for key in keys) for keys in (unit.entry, unit.saved))
            filled = unit.filled if unit.stream is None else frozenset[Key]()
            self.units.append(replace(unit, entry=entry, saved=saved, filled=filled))
        for index in range(len(step.units)):
            self._hand_behind(index)

    def _given_to(self, index: int) -> dict[Key, Key]:
        """By what a unit is given in the trace, what it is given by a stream."""
        unit, front = self._traced[index], self._front_of(index)
        if front is not None and (unit.stream, front.stream) != (None, None):
            # What more than two units share (the angles of rotary positions) is no stream.
            handed = {key: self.sizes[key] for key in unit.entry & front.saved if self._uses[key] <= 2}
        else:
            handed = {}
        copied: dict[Key, int] = {}
        if unit.stream is not None and (front is None or front.stream != unit.stream):
            # What the model was given is no bytes of the step.
            handed |= {key: unit.cost.output_bytes for key in unit.entry if not self.sizes[key]}
            kept = unit.entry.intersection(self.glue).difference(handed)
            copied = {key: self.sizes[key] for key in kept if self._is_stream(unit, key)}
        self.stand_ins |= (own := {key: self._new(size) for key, size in handed.items()})
        return own | {key: self._new(size) for key, size in copied.items()}

    def _front_of(self, index: int) -> Unit | None:
        """The unit in front; of a block behind another one of its stream that one, which may not be the last to run."""
        stream = self._traced[index].stream
        alike = (unit for unit in reversed(self._traced[:index]) if stream is not None and unit.stream == stream)
        return next(alike, self._traced[index - 1] if index else None)

    def _hand_behind(self, index: int) -> None:
        """Who comes behind a block has what the stream returns, not what the block has returned and keeps itself."""
        unit = self._traced[index]
        behind = {key for key, place in self.glue.items() if place > index} | self.outputs
        for key in [key for key in (behind & unit.saved) - unit.entry if self._is_stream(unit, key)]:
            if key not in self.stand_ins:
                self.stand_ins[key] = self._new(self.sizes[key])
            if key in self.glue:
                self.glue[self.stand_ins[key]] = self.glue.pop(key)
            if key in self.outputs:
                self.outputs = self.outputs - {key} | {self.stand_ins[key]}

    def _is_stream(self, unit: Unit, key: Key) -> bool:
        """Whether a storage is as large as what the unit's stream carries."""
        return unit.stream is not None and self.sizes[key] == self._streams[unit.stream].position

    def _new(self, size: int) -> Key:
        self.sizes[number := next(self._numbers)] = size
        return number
