"""How finely a stream's state resolves its values: the word, and the bits of it that are used.

One scale serves all values of a stream, the largest and the others. So it goes by both: by the largest magnitude, and
by how far the typical values lie below it (the *spread*). One value of 20,000 among values of 1, as transformers have
them, would else leave the others a grid as coarse as a half type's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from momentumnet.arithmetic.exponent import full_bits
from momentumnet.arithmetic.fixed_point import INT24, INT32, INT64, Word, has_short_store

# With 22 bits for the largest magnitude, headroom and a sign, x and v take three bytes each at rest. That is what the
# floats themselves resolve at that magnitude. Rounding adds up with depth, and what a branch adds to v is resolved
# 1/(1-gamma) times more coarsely than x, so deep float32 streams and those of a large gamma use the whole word.
NARROW_BITS = 22
NARROW_BLOCKS = 8
NARROW_GAMMA = Fraction(1, 2)
# Bits that a typical value needs: what is lost with fewer would be seen beside the rounding of the floats themselves.
TYPICAL_BITS = {torch.float32: 22, torch.float16: 13, torch.bfloat16: 10, torch.float64: 0}
# Bits that it has at least where the scale is that of a pass of larger values before.
LEAST_BITS = {torch.float32: 12, torch.float16: 10, torch.bfloat16: 8, torch.float64: 12}
# Fewest bits for the largest magnitude in half-precision streams: x and v take two bytes each at rest then.
HALF_BITS = 14
# Most bits for the largest magnitude where the word has 24: two are free above then, as in float32 streams that use
# the whole word. Most streams leave more: five to eight.
JOINT_BITS = 20
# Where the state is narrow, a float32 stream has the precision that is documented for it up to this spread.
NARROW_TYPICAL_BITS = 18


@dataclass(frozen=True)
class Resolution:
    """The word that carries a stream, and for how many bits of the largest magnitude its scale is chosen."""

    word: Word
    bits: int


def resolution_for(dtype: torch.dtype, blocks: int, gamma: Fraction, spread: float = 1.0) -> Resolution:
    """The least bits that serve a stream.

    Args:
        dtype: of its tensors.
        blocks: how many it has.
        gamma: its momentum factor.
        spread: the largest magnitude over a typical one.
    """
    if dtype == torch.float64:
        return Resolution(INT64, full_bits(INT64))
    spread_bits = math.log2(max(spread, 1.0))
    needed = spread_bits + TYPICAL_BITS[dtype]
    if dtype == torch.float32:
        is_short = blocks <= NARROW_BLOCKS and gamma <= NARROW_GAMMA
        if is_short and spread_bits + NARROW_TYPICAL_BITS <= NARROW_BITS:
            return Resolution(INT32, NARROW_BITS)
    else:
        needed += _bits_of_branches(gamma)
        if needed <= NARROW_BITS:
            bits = max(HALF_BITS, math.ceil(needed))
            return Resolution(INT24 if bits <= JOINT_BITS and has_short_store(gamma) else INT32, bits)
    word = INT32 if needed <= full_bits(INT32) else INT64
    return Resolution(word, full_bits(word))


def spare_bits(bits: int, dtype: torch.dtype, gamma: Fraction, spread: float = 1.0) -> float:
    """By how many of the ``bits`` for the largest magnitude a scale may be too coarse; else as `resolution_for`."""
    return bits - math.log2(max(spread, 1.0)) - LEAST_BITS[dtype] - _bits_of_branches(gamma)


def _bits_of_branches(gamma: Fraction) -> float:
    """What a branch adds to v is resolved 1/(1-gamma) times more coarsely than x."""
    return 0 if gamma == 1 else -math.log2(1 - gamma)
