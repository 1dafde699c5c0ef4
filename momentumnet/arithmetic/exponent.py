"""The exponent k of a stream's integers, value = integer * 2**-k: as fine as the largest magnitude allows."""

from __future__ import annotations

import math

from momentumnet.arithmetic import fixed_point as fp

# Bits kept free above the largest magnitude known when a scale is chosen. One is enough: a coarser scale can be taken
# at any step, and every bit kept free here is a bit of precision lost at every step.
HEADROOM_BITS = 1


def choose_exponent(magnitude: float, word: fp.Word, bits: int | None = None) -> int:
    """The scale k for values up to ``magnitude``: ``magnitude * 2**k`` fits ``bits`` bits.

    ``bits`` are by default those that leave HEADROOM_BITS below the word's limit. k is kept within the word's coarsest
    scale (less headroom then, or none) and its finest. Magnitude 0 counts as 1.
    """
    exponent = (full_bits(word) if bits is None else bits) - math.frexp(magnitude or 1.0)[1]
    return min(max(exponent, word.min_exponent), word.max_exponent)


def full_bits(word: fp.Word) -> int:
    """Bits of the largest magnitude known, where the whole word is used."""
    return word.bits - 2 - HEADROOM_BITS
