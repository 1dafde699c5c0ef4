r"""Exact multiplication by gamma = n/d on fixed-point integers, and the store that keeps the digits it loses.

A value is an integer ``X`` with ``value = X * 2**-k``. Multiplying ``v`` by n/d loses log2(d/n) bits an element; they
are kept in a store ``s`` with ``0 <= s < B``, where the bound ``B`` is one number for all elements, known in advance.
Every operation below has an exact inverse, for any integers: extremes and wrap-around included.

    v = q*d + r (floor)       B2 = ceil(B*d/n)       o = (n*B2 - d*B) div 2
    forward:  t = r*B + s + o;  b = t div B2;  s = t mod B2;  v = q*n + b
    inverse:  q = v div n;  b = v mod n;  t = b*B2 + s - o;  r = t div B;  s = t mod B;  v = q*d + r

``s/B`` is the fraction of ``v``, so no popped digit ever enters ``v`` as noise (the textbook order of Maclaurin,
Duvenaud and Adams, ICML 2015, section 3, has that noise). When the next bound would pass the word, the low byte of
``s`` is put aside as a uint8 tensor and ``B`` becomes ceil(B/256).

These plain PyTorch operations run on any device; they are the reference for native code.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

MAX_DENOMINATOR = 128


@dataclass(frozen=True)
class Word:
    """An integer type of the state. Magnitudes stay below ``limit``, so that ``x + v + 1`` cannot wrap."""

    dtype: torch.dtype
    bits: int
    compute_dtype: torch.dtype  # float type in which values are scaled and rounded

    @property
    def limit(self) -> int:
        """Magnitudes at or above this count as overflow."""
        return 1 << (self.bits - 2)

    @property
    def store_limit(self) -> int:
        """Largest value that the store's arithmetic may reach."""
        return (1 << (self.bits - 1)) - 1


INT32 = Word(torch.int32, 32, torch.float32)
INT64 = Word(torch.int64, 64, torch.float64)


def word_for(dtype: torch.dtype) -> Word:
    """The word that carries a stream of ``dtype``: int64 for float64, int32 for float32, bfloat16 and float16."""
    return INT64 if dtype == torch.float64 else INT32


def exact_gamma(gamma: float | Fraction) -> Fraction:
    """Gamma as the reduced fraction n/d, d <= 128, that is used everywhere (state and gradient).

    Example:
        >>> exact_gamma(0.9)
        Fraction(9, 10)

    Raises:
        ValueError: gamma is not in [0, 1], or is so near 0 that no fraction with d <= 128 but 0 is near it.
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float, Fraction)):
        raise TypeError(f"gamma must be a number in [0, 1], got {gamma!r} of type {type(gamma).__name__}")
    if not (math.isfinite(gamma) and 0 <= gamma <= 1):
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
    ratio = Fraction(gamma).limit_denominator(MAX_DENOMINATOR)
    if gamma > 0 and ratio == 0:
        raise ValueError(
            f"gamma={gamma!r} is nearest to 0 among the fractions n/d with d <= {MAX_DENOMINATOR}; "
            f"use gamma >= 1/{MAX_DENOMINATOR}, or gamma=0 for the network without velocity"
        )
    return ratio


@dataclass(frozen=True)
class Digits:
    """The store's bounds around one multiplication by n/d (see the module's formula)."""

    n: int
    d: int
    spills: int  # bytes put aside first
    previous_bound: int  # B before the spills
    bound: int  # B
    next_bound: int  # B2
    offset: int  # o


def _fits(bound: int, n: int, d: int, word: Word) -> bool:
    next_bound = -(-bound * d // n)
    return next_bound <= word.store_limit and d * bound + (n * next_bound - d * bound) // 2 <= word.store_limit


class StoreSchedule:
    """The deterministic sequence of bounds and spills of a stream: step i has the same digits in every pass."""

    def __init__(self, gamma: Fraction, word: Word) -> None:
        self._n, self._d, self._word = gamma.numerator, gamma.denominator, word
        # A wide first bound makes the slack of B2 = ceil(B*d/n) negligible; it costs no memory, only an earlier spill.
        self._next = max(1, min(1 << (word.bits - 11), word.store_limit * self._n // (2 * self._d)))
        self._steps: list[Digits] = []

    def __getitem__(self, index: int) -> Digits:
        """The digits of step ``index``, counted from the stream's start."""
        while len(self._steps) <= index:
            self._steps.append(self._extend())
        return self._steps[index]

    def _extend(self) -> Digits:
        n, d, previous = self._n, self._d, self._next
        bound, spills = previous, 0
        while not _fits(bound, n, d, self._word):
            bound, spills = -(-bound // 256), spills + 1
        next_bound = -(-bound * d // n)
        self._next = next_bound
        return Digits(n, d, spills, previous, bound, next_bound, (n * next_bound - d * bound) // 2)


@functools.cache
def store_schedule(gamma: Fraction, word: Word) -> StoreSchedule:
    """The shared schedule of every stream with this gamma and word."""
    return StoreSchedule(gamma, word)


def floor_divide(value: Tensor, divisor: int) -> Tensor:
    """Floor division of integers, any sign (a shift where the divisor is a power of two: exact and much faster)."""
    if divisor & (divisor - 1) == 0:
        return value >> (divisor.bit_length() - 1)
    sign = value >> (8 * value.element_size() - 1)
    quotient = torch.div(value ^ sign, divisor, rounding_mode="trunc")
    return quotient.bitwise_xor_(sign)


def to_fixed(value: Tensor, factor: float, word: Word) -> Tensor:
    """``round(value * factor)`` to the nearest integer, half to even; saturated at the limit, NaN becomes 0.

    A finite value whose product is below ``word.limit`` is never touched by the saturation.
    """
    limit = float(word.limit)
    scaled = value.to(word.compute_dtype) * factor
    return torch.nan_to_num_(scaled, nan=0.0, posinf=limit, neginf=-limit).clamp_(-limit, limit).round_().to(word.dtype)


def to_float(value: Tensor, exponent: int, word: Word, dtype: torch.dtype) -> Tensor:
    """``value * 2**-exponent`` in ``dtype``: a function of the integer alone, on every device."""
    return value.to(word.compute_dtype).mul_(math.ldexp(1.0, -exponent)).to(dtype)


def multiply(v: Tensor, s: Tensor, digits: Digits) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """``v * n/d`` with the lost digits pushed onto the store: ``(v, s, spilled bytes)``. Changes ``s`` in place."""
    spilled = []
    for _ in range(digits.spills):
        spilled.append((s & 255).to(torch.uint8))
        s >>= 8
    q = floor_divide(v, digits.d)
    t = (v - q * digits.d).mul_(digits.bound).add_(s).add_(digits.offset)
    b = floor_divide(t, digits.next_bound)
    torch.sub(t, b * digits.next_bound, out=s)
    return q.mul_(digits.n).add_(b), s, tuple(spilled)


def divide(v: Tensor, s: Tensor, digits: Digits, spilled: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The exact inverse of `multiply`. Changes ``s`` in place."""
    q = floor_divide(v, digits.n)
    t = (v - q * digits.n).mul_(digits.next_bound).add_(s).sub_(digits.offset)
    r = floor_divide(t, digits.bound)
    torch.sub(t, r * digits.bound, out=s)
    for byte in reversed(spilled):
        s <<= 8
        s |= byte
    return q.mul_(digits.d).add_(r), s


def carry(s: Tensor, bound: int) -> Tensor:
    """1 where the store's fraction ``s/bound`` rounds up (2s >= bound), else 0."""
    threshold = (bound - 1) // 2
    return (threshold - s).bitwise_right_shift_(8 * s.element_size() - 1).neg_()


def checksum(x: Tensor, v: Tensor, s: Tensor) -> Tensor:
    """One integer that a change of any element of the state changes (but for one case in 2**32).

    Sum over the elements, modulo the word, of ``(m ^ (m >> 15)) * 0x2C1B3C6D`` with ``m = x * 0x3C6EF372 + v *
    0x1E3779B1 + s``: not linear, so compensating errors do not cancel.
    """
    mixed = (x * 0x3C6EF372).add_(v * 0x1E3779B1).add_(s)
    mixed ^= mixed >> 15
    return mixed.mul_(0x2C1B3C6D).sum(dtype=mixed.dtype)


def split_low_bits(value: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``(value >> bits, low bits)``: a coarser value, and what `join_low_bits` needs to undo it."""
    low = value & ((1 << bits) - 1)
    kinds = itertools.dropwhile(lambda kind: kind[0] < bits, ((8, torch.uint8), (15, torch.int16), (31, torch.int32)))
    _, dtype = next(kinds, (64, value.dtype))
    return value >> bits, low.to(dtype)


def join_low_bits(value: Tensor, low: Tensor, bits: int) -> Tensor:
    """The inverse of `split_low_bits`."""
    return (value << bits).bitwise_or_(low.to(value.dtype))
