"""The range of a state: the scale of its integers, and which values fit it."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

from momentumnet.arithmetic.exponent import choose_exponent
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.momentum_step import Scale, fits
from momentumnet.core.state.coarsening import coarser_exponent
from momentumnet.core.state.coupling import magnitude_of


class Range:
    """The scale k of integers, value = integer * 2**-k, on its way.

    Args:
        word: the integers' type.
        exponent: k; lowered where values do not fit.
        bits: of the largest magnitude for which a scale is chosen.
        stream: the stream's name, for errors.
    """

    def __init__(self, word: Word, exponent: int, bits: int, stream: str) -> None:
        self.word, self.exponent, self.bits = word, exponent, bits
        self._stream = stream

    def scale(self, weight: Fraction | None = None) -> Scale:
        """How floats become integers now; a branch is weighted on the way."""
        factor = 1.0 if weight is None else math.ldexp(float(weight), self.exponent)
        return Scale(self.word, self.exponent, factor)

    @property
    def capacity(self) -> float:
        """The magnitude for which the present scale would have been chosen, as a power of two."""
        return math.ldexp(1.0, self.bits - self.exponent)

    def exponent_of(self, magnitude: float) -> int:
        """The scale that would be chosen for values up to ``magnitude``."""
        return choose_exponent(magnitude, self.word, self.bits)

    def coarser_exponent(self, largest: float) -> int:
        """The scale for values up to ``largest``, which do not fit the present one; raises as `coarsening` does."""
        return coarser_exponent(largest, self.exponent, self.word, self.bits, self._stream)

    def take_in(self, *values: Tensor) -> None:
        """Make the scale coarser if the values do not fit it. Reads the device."""
        magnitudes = [magnitude_of(value) for value in values]
        largest = math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes)
        if not largest < math.ldexp(self.word.limit, -self.exponent):
            self.exponent = self.coarser_exponent(largest)

    def excludes(self, magnitude: float) -> bool:
        """Whether a step that reported this magnitude has gone past the word."""
        return not fits(int(magnitude), self.word)

    def excludes_on_device(self, magnitudes: Tensor) -> Tensor:
        """The same of many, unread."""
        return (magnitudes < 0) | (magnitudes >= self.word.limit)
