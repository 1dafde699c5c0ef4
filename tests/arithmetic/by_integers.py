"""A step of the store on Python's own integers."""

from __future__ import annotations

from momentumnet.arithmetic import fixed_point as fp
from tests.arithmetic.strategies import wrap


def stepped(x: int, v: int, s: int, push: int, digits: fp.Digits, word: fp.Word) -> tuple[int, int, int]:
    v, s, _ = multiplied(v, s, digits)
    v = wrap(v + push, word)
    return wrap(x + v + (2 * s >= digits.next_bound), word), v, s


def multiplied(v: int, s: int, digits: fp.Digits) -> tuple[int, int, list[int]]:
    """The formula of `fixed_point`'s docstring, on Python's integers."""
    spilled = []
    for _ in range(digits.spills):
        s, byte = divmod(s, 256)
        spilled.append(byte)
    q, r = divmod(v, digits.d)
    b, s = divmod(r * digits.bound + s + digits.offset, digits.next_bound)
    return q * digits.n + b, s, spilled
