"""The scale of a stream's exact state: chosen from what is known of its values, and kept wider once they outgrow it."""

from __future__ import annotations

import logging
import math
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic.exponent import HEADROOM_BITS, choose_exponent, full_bits
from momentumnet.arithmetic.fixed_point import INT32, word_for
from momentumnet.core.coupling import State
from momentumnet.core.exact_state import ExactState

logger = logging.getLogger("momentumnet")

# A scale is chosen for at most this many times the magnitude of the stream's first tensor.
GROWTH = 8
# With 22 bits for the largest magnitude, headroom and a sign, x and v take three bytes each at rest. That is what the
# floats themselves resolve at that magnitude. Rounding adds up with depth, and what a branch adds to v is resolved
# 1/(1-gamma) times more coarsely than x, so deep float32 streams and those of a large gamma use the whole word.
NARROW_BITS = 22
NARROW_BLOCKS = 8
NARROW_GAMMA = Fraction(1, 2)


def magnitude_bits(dtype: torch.dtype, blocks: int, gamma: Fraction) -> int:
    """For how many bits of the largest magnitude a stream's scale is chosen: fewer where precision allows."""
    word = word_for(dtype)
    if word is INT32 and (dtype != torch.float32 or (blocks <= NARROW_BLOCKS and gamma <= NARROW_GAMMA)):
        return NARROW_BITS
    return full_bits(word)


class StreamScale:
    """What a stream has learned of the magnitude of its values.

    Args:
        name: the stream's name, for the log.
        magnitude: largest value to expect; None to take it from the first pass.
        blocks: how many the stream has.
    """

    def __init__(self, name: str, magnitude: float | None, blocks: int) -> None:
        self._name, self._blocks = name, blocks
        self._magnitude = magnitude

    def bits_for(self, dtype: torch.dtype, gamma: Fraction) -> int:
        """The bits of the largest magnitude in a pass of ``dtype``."""
        return magnitude_bits(dtype, self._blocks, gamma)

    def exponent_for(self, x: Tensor, gamma: Fraction) -> int:
        """The scale k of a pass that starts from ``x``: for the stream's magnitude, at most GROWTH times that of x.

        A stream that grows by more would lose the small values at its start to a coarse scale; it is widened on the way
        instead, which costs a byte or two an element each time.
        """
        word, bits = word_for(x.dtype), self.bits_for(x.dtype, gamma)
        low, high = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
        start = max(-float(low), float(high))
        if not 0 < start < math.inf:
            return choose_exponent(self._magnitude or 1.0, word, bits)
        if self._magnitude is None:
            self._magnitude = 4 * start  # no example inputs: room for what the blocks will add
        elif start >= math.ldexp(1.0, bits + HEADROOM_BITS - choose_exponent(self._magnitude, word, bits)):
            # In eval mode, or from random weights, the example inputs may have shown values far below these.
            self._widen(4 * start)
        return choose_exponent(min(self._magnitude, GROWTH * start), word, bits)

    def remember(self, state: State) -> None:
        """Keep the scale of a state that was widened for the passes to come."""
        if isinstance(state, ExactState) and self._magnitude is not None and state.capacity > 2 * self._magnitude:
            self._widen(state.capacity / 2)

    def _widen(self, magnitude: float) -> None:
        logger.warning(
            "stream %r: values outgrew the scale chosen for magnitude %.4g; widened to %.4g (no value was lost)",
            self._name,
            self._magnitude,
            magnitude,
        )
        self._magnitude = magnitude
