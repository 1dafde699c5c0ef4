"""What the exact state of a stream takes between forward and backward."""

from __future__ import annotations

from fractions import Fraction

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.exponent import HEADROOM_BITS
from momentumnet.arithmetic.packing import Field


def resting_bytes(gamma: Fraction, word: fp.Word, bits: int, steps: int) -> float:
    """Bytes an element, in eighths, that a state keeps between forward and backward of ``steps`` steps.

    x and v, the store, and the bytes that it has put aside; for values up to the magnitude that ``bits`` were chosen
    for, and where the scale did not have to be made coarser on the way.
    """
    schedule = fp.store_schedule(gamma, word)
    spilled = sum(schedule[step].spills for step in range(steps))
    if word is fp.INT64:
        return 3 * word.bits // 8 + spilled
    store = Field.of(0, schedule[steps].previous_bound - 1)
    return (2 * (bits + HEADROOM_BITS + 1) + store.width) / 8 + spilled
