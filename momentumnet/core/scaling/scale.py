"""The scale of a stream's exact state: chosen from what is known of its values, and kept wider once they outgrow it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from momentumnet.arithmetic.exponent import HEADROOM_BITS, choose_exponent, full_bits
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.reports import has_values, read
from momentumnet.core.scaling.reached import Reached
from momentumnet.core.scaling.resolution import LEAST_BITS, Resolution, resolution_for, spare_bits
from momentumnet.core.scaling.spread import StreamSpread, spread_of
from momentumnet.core.state.range import Range
from momentumnet.core.state.watch import Seen
from momentumnet.errors import CheckpointError

logger = logging.getLogger("momentumnet")

# A scale is chosen for at most this many times the magnitude of the stream's first tensor.
GROWTH = 8
# Bits kept free beyond HEADROOM_BITS where the whole word is used and steps are not looked at one by one: values may
# outgrow their scale by that much unseen. (Where fewer bits are used, the rest of the word is free anyway.)
UNSEEN_BITS = 1
# The largest value at a stream's start may vary by this factor, either way, before passes begin with another scale.
START_VARIES = 4
# Values that leave no more bits of the word free are about to outgrow their scale: the next pass begins coarser.
TIGHT_BITS = 1


@dataclass(frozen=True)
class ScalePlan:
    """How a pass begins, chosen from what earlier passes (or the example inputs) have shown.

    Attributes:
        exponent: the scale k at the start.
        resolution: the word, and its bits for which scales are chosen.
        coarsest: by place in the stream, the scale that earlier passes had to take there.
        careful: whether every step is to be looked at, because it is not known yet where values outgrow the scale.
    """

    exponent: int
    resolution: Resolution
    coarsest: Mapping[int, int]
    careful: bool


class StreamScale(StreamSpread):
    """What a stream has learned of the magnitude of its values.

    Args:
        name: the stream's name, for the log.
        magnitude: largest value to expect; None to take it from the first pass.
        blocks: how many the stream has.
        start: largest value at the stream's start; None to take it from the first pass.
        spread: largest values over typical ones; None to take it from the first pass.
    """

    def __init__(
        self,
        name: str,
        magnitude: float | None,
        blocks: int,
        start: float | None = None,
        spread: float | None = None,
    ) -> None:
        super().__init__(name, spread, magnitude)
        self._blocks = blocks
        self._magnitude, self._start = magnitude, start
        self._reached = Reached()
        # By the gamma of the last pass, the largest x and v at its end. Not saved: a first pass tells them again.
        self._largest: dict[Fraction, tuple[float, float]] = {}
        # What the log was told of: the magnitude of a wider scale, and a pass that was resolved too coarsely. Copies of
        # this scale share it.
        self._told: list[float] = []
        self._told_coarse: list[float] = []

    def state(self) -> dict[str, Any]:
        """All that has been learned, as numbers."""
        return {
            "magnitude": self._magnitude,
            "start": self._start,
            "spread": self._spread,
            **self._reached.state(),
            "spread_at": self._spread_at,
            "looks_for_spread": self.looks_for_spread,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Know what `state` gave, and nothing else.

        Raises:
            CheckpointError: it is no such state, or that of a stream with fewer or more blocks.
        """
        fields = self.state().keys()
        # States of before have none of these.
        later = {*Reached().state().keys(), "spread_at", "looks_for_spread"} - {"reached"}
        if not isinstance(state, Mapping) or {*state, *later} != {*fields}:
            raise CheckpointError(f"stream {self._name!r}: expected a mapping of {', '.join(fields)}, got {state!r}")
        measured = [state.get(name) for name in ("magnitude", "start", "spread", "spread_at")]
        if not all(value is None or _is_magnitude(value) for value in measured):
            raise CheckpointError(
                f"stream {self._name!r}: magnitude, start, spread and spread_at must be finite numbers, 0 or more, or "
                f"None, got {measured}"
            )
        try:
            self._reached = Reached.of(state, self._blocks)
        except ValueError as error:
            raise CheckpointError(f"stream {self._name!r}: {error}") from None
        self._magnitude, self._start, self._spread, _ = measured
        self._spread_at = state.get("spread_at", self._magnitude)
        self.looks_for_spread, self._extents = bool(state.get("looks_for_spread", False)), []

    def resolution_for(self, dtype: torch.dtype, gamma: Fraction) -> Resolution:
        """The resolution of a pass of ``dtype``."""
        return resolution_for(dtype, self._blocks, gamma, self._spread or 1.0)

    def plan_for(self, x: Tensor, gamma: Fraction, *, from_start: bool = True) -> ScalePlan:
        """How a pass from ``x`` begins. Reads the device only where nothing is known of how the stream begins.

        Args:
            x: the stream tensor.
            gamma: of the pass.
            from_start: whether ``x`` is the stream's first tensor, not one in its middle.
        """
        start = self._start if from_start else None
        if (start is None or self._magnitude is None) and has_values(x):
            exponent = self.exponent_for(x, gamma)
            found = self.resolution_for(x.dtype, gamma)
            return ScalePlan(exponent, found, self._coarsest_for(found), careful=True)
        largest, found = self._magnitude or 1.0, self.resolution_for(x.dtype, gamma)
        found = replace(found, bits=min(found.bits, full_bits(found.word) - UNSEEN_BITS))
        largest = largest if start is None else min(largest, GROWTH * start)
        exponent = choose_exponent(largest, found.word, found.bits)
        careful = self._outgrows(largest) and has_values(x)
        return ScalePlan(exponent, found, self._coarsest_for(found), careful=careful)

    def _outgrows(self, largest: float) -> bool:
        """Whether values will outgrow a scale that is chosen for ``largest``, and no pass has told yet where."""
        return self._reached.once is None and self._magnitude is not None and self._magnitude > largest

    def _coarsest_for(self, found: Resolution) -> dict[int, int]:
        """By place, the scale that is to be taken there."""
        bits, coarsest = _bits_of(found.word, found.bits), found.word.min_exponent
        return {place: max(bits - power, coarsest) for place, power in self._reached.powers.items()}

    def exponent_for(self, x: Tensor, gamma: Fraction) -> int:
        """The scale k of a pass that starts from ``x``: for the stream's magnitude, at most GROWTH times that of x.

        A stream that grows by more would lose the small values at its start to a coarse scale; it is widened on the way
        instead, which costs a byte or two an element each time.
        """
        low, high = torch.aminmax(x.detach()) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        low, high = read(torch.stack([low, high]).double())
        start = max(-low, high)
        if self._spread is None:
            self._spread = spread_of(x, start)
        found = self.resolution_for(x.dtype, gamma)
        word, bits = found.word, found.bits
        if not 0 < start < math.inf:
            return choose_exponent(self._magnitude or 1.0, word, bits)
        if self._magnitude is None:
            self._magnitude = 4 * start  # no example inputs: room for what the blocks will add
        elif start >= math.ldexp(1.0, bits + HEADROOM_BITS - choose_exponent(self._magnitude, word, bits)):
            # In eval mode, or from random weights, the example inputs may have shown values far below these.
            self._widen(4 * start)
        return choose_exponent(min(self._magnitude, GROWTH * start), word, bits)

    def largest_at(self, gamma: Fraction) -> tuple[float, float] | None:
        """The largest x and v at the end of the last pass, if that was one at this gamma, and is known."""
        return self._largest.get(gamma)

    def learn(
        self,
        seen: Sequence[Seen],
        scale: Range | None,
        largest: tuple[float, float] | None = None,
        *,
        gamma: Fraction,
        dtype: torch.dtype,
        from_start: bool = True,
    ) -> None:
        """Keep what the steps of a pass have reported for the passes to come.

        Args:
            seen: what they have reported.
            scale: the one at the end of the pass; None of floats, which teach nothing.
            largest: the largest x and v there; None where they are not known.
            gamma: of the pass.
            dtype: of its tensors.
            from_start: whether it began with the stream's first tensor.
        """
        if scale is None or not seen:
            return
        if any(scale.excludes(entry.magnitude) for entry in seen):
            self._start = None  # the next pass is careful, if this one cannot be played again
            return
        if largest is not None:
            self._largest = {gamma: largest}
        has_shrunk = from_start and self._know_start(seen[0])
        tight, bits = scale.word.limit >> TIGHT_BITS, _bits_of(scale.word, scale.bits)
        spare = spare_bits(scale.bits, dtype, gamma, self._spread or 1.0)
        came_with = bits - seen[0].exponent
        self._reached = self._reached.behind(
            seen, _asked(seen, scale, bits, tight), came_with, lambda value: bits - scale.exponent_of(value), spare
        )
        greatest = max(math.ldexp(entry.magnitude, -entry.exponent) for entry in seen)
        if has_shrunk and (lost := came_with - bits + scale.exponent_of(greatest)) > spare:
            self._tell_coarse(spare + LEAST_BITS[dtype] - lost)
        if self._know_spread(greatest):
            self._largest = {}  # a finer grid shows what a coarser one has rounded away
        if self._magnitude is not None and scale.capacity > 2 * self._magnitude:
            self._widen(max(scale.capacity / 2, greatest))
        elif self._magnitude is not None and any(entry.magnitude >= tight for entry in seen):
            self._magnitude = max(self._magnitude, greatest)

    def _know_start(self, seen: Seen) -> bool:
        """A stream has begun so: whether with far smaller values than those by which its scale was chosen."""
        start = math.ldexp(seen.magnitude, -seen.exponent)
        known = self._start
        if not start or (known is not None and known / START_VARIES <= start <= known * START_VARIES):
            return False
        self._start = start
        return known is not None and start < known

    def _tell_coarse(self, bits: float) -> None:
        """A pass of far smaller values than the one before has had its scale: typical ones so many bits of it."""
        if not self._told_coarse:
            self._told_coarse.append(bits)
            logger.warning(
                "stream %r: the values of a pass are so much smaller than those of the pass before, by which its scale "
                "was chosen, that typical ones have had %.0f bits of it: its output and gradients are as coarse as "
                "that. The next pass has a finer scale. Where passes of such different size take turns, bring them to "
                "one size in front of the stream, or carry it in float64; this is told once",
                self._name,
                max(bits, 0.0),
            )

    def _widen(self, magnitude: float) -> None:
        if not self._told:
            self._told.append(magnitude)
            logger.info(
                "stream %r: values outgrew the scale chosen for magnitude %.4g; widened to %.4g. No value was lost, "
                "and there is nothing to do; this is told once",
                self._name,
                self._magnitude,
                magnitude,
            )
        self._magnitude = magnitude


def _asked(seen: Sequence[Seen], scale: Range, bits: int, tight: int) -> dict[int, int]:
    """By place, the power of the scale that values there have asked for: those that took another one, or nearly so."""
    asked: dict[int, int] = {}
    for before, entry in itertools.pairwise(seen):
        wanted = min(scale.exponent_of(math.ldexp(entry.magnitude, -entry.exponent)), entry.exponent)
        if entry.magnitude >= tight or entry.exponent < before.exponent:
            asked[entry.place] = max(bits - wanted, asked.get(entry.place, bits - wanted))
    return asked


def _is_magnitude(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf


def _bits_of(word: Word, bits: int) -> int:
    """The bits for which scales are chosen, without regard to what passes that are not looked at keep free."""
    return full_bits(word) if bits >= full_bits(word) - UNSEEN_BITS else bits
