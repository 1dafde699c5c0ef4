r"""Exact multiplication by gamma = n/d on fixed-point integers, and the store that keeps the digits it loses.

A value is an integer ``X`` with ``value = X * 2**-k``. Multiplying ``v`` by n/d loses log2(d/n) bits an element; they
are kept in a store ``s`` with ``0 <= s < B``, where the bound ``B`` is one number for all elements, known in advance.
Every operation below has an exact inverse, for any integers v: extremes and wrap-around included.

    v = q*d + r (floor)       B2 = ceil(B*d/n)       o = (n*B2 - d*B) div 2
    forward:  t = r*B + s + o;  b = t div B2;  s = t mod B2;  v = q*n + b
    inverse:  q = v div n;  b = v mod n;  t = b*B2 + s - o;  r = t div B;  s = t mod B;  v = q*d + r

``s/B`` is the fraction of ``v``: gamma * (v + s/B) comes out to within n/(2 B2), and no popped digit ever enters ``v``
as noise (the textbook order of Maclaurin, Duvenaud and Adams, ICML 2015, section 3, has that noise). When t could pass
the word, the low byte of ``s`` is put aside first, as a uint8 tensor, and ``B`` becomes ceil(B/256).

These plain PyTorch operations run on any device; they are the reference for native code.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

MAX_DENOMINATOR = 128
# Bits of the store's bound where the noise of so short a store is far below that of rounding x.
SHORT_STORE_BITS = 16
SHORT_STORE_NOISE = 128


@dataclass(frozen=True)
class Word:
    """An integer type of the state. Magnitudes stay below ``limit``, so that ``x + v + 1`` cannot wrap."""

    dtype: torch.dtype  # in which is computed
    bits: int  # that are kept of x and v
    compute_dtype: torch.dtype  # float type in which values are scaled and rounded

    @property
    def limit(self) -> int:
        """Magnitudes at or above this count as overflow."""
        return 1 << (self.bits - 2)

    @property
    def store_limit(self) -> int:
        """Largest value that the store's arithmetic may reach."""
        return (1 << (8 * self.dtype.itemsize - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """Finest scale: both 2**k and 2**-k are normal numbers of the compute type."""
        return 1 - math.frexp(torch.finfo(self.compute_dtype).tiny)[1]

    @property
    def min_exponent(self) -> int:
        """Coarsest scale: units of 1, or where bits are missing, of as much as makes up for them."""
        return self.bits - 8 * self.dtype.itemsize

    def wrap_(self, value: Tensor) -> Tensor:
        """What is left of ``value`` in the bits that are kept, in two's complement. In place."""
        missing = 8 * self.dtype.itemsize - self.bits
        return value.bitwise_left_shift_(missing).bitwise_right_shift_(missing) if missing else value


INT24 = Word(torch.int32, 24, torch.float32)
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
        TypeError: gamma is no number.
        ValueError: gamma is not in [0, 1]; or it is neither 0 nor 1, but nearer to one of them than to any other
            fraction with d <= 128 (at 0 there is no velocity, at 1 the branches have weight 0).
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float, Fraction)):
        raise TypeError(f"gamma must be a number in [0, 1], got {gamma!r} of type {type(gamma).__name__}")
    if not (math.isfinite(gamma) and 0 <= gamma <= 1):
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
    ratio = Fraction(gamma).limit_denominator(MAX_DENOMINATOR)
    if ratio in (0, 1) and gamma != ratio:
        raise ValueError(
            f"gamma={gamma!r} is nearest to {ratio} among the fractions n/d with d <= {MAX_DENOMINATOR}; use gamma "
            f"from 1/{MAX_DENOMINATOR} to {MAX_DENOMINATOR - 1}/{MAX_DENOMINATOR}, or gamma={ratio} itself "
            f"({'no velocity' if ratio == 0 else 'branches have weight 0'})"
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

    @property
    def constants(self) -> tuple[int, int, int, int, int, int]:
        """All but the spills, in the order in which kernels take them."""
        return self.n, self.d, self.previous_bound, self.bound, self.next_bound, self.offset


def has_short_store(gamma: Fraction) -> bool:
    """Whether bounds up to 2**16 do: n/(1 - gamma) is small."""
    return gamma == 1 or gamma.numerator / (1 - gamma) <= SHORT_STORE_NOISE


class StoreSchedule:
    """The deterministic sequence of bounds and spills of a stream: step i has the same digits in every pass.

    One step is exact to n/(2 B2) units of v, and an error of v comes to 1/(1 - gamma) times as much in x. Where
    n/(1 - gamma) is small, bounds up to 2**16 do (it ``is_short``, two bytes then); else the word is used to its end.
    """

    def __init__(self, gamma: Fraction, word: Word) -> None:
        self._n, self._d, self._word = gamma.numerator, gamma.denominator, word
        self.is_short = word.dtype == torch.int32 and has_short_store(gamma)
        self._steps = [self._after(self._first_bound())]

    @property
    def store_bits(self) -> int:
        """Bits that the store of a state in motion is kept in."""
        return SHORT_STORE_BITS if self.is_short else 8 * self._word.dtype.itemsize

    def _first_bound(self) -> int:
        """With n = 1 nothing is lost to rounding B2 up; else a wider bound makes that negligible, at once."""
        if self._n == 1:
            return 1
        if self.is_short:
            return 1 << (SHORT_STORE_BITS - 8)
        return min(1 << (8 * self._word.dtype.itemsize - 11), self._word.store_limit * self._n // (2 * self._d))

    def _fits(self, bound: int) -> bool:
        """Whether B2 stays in the store and t in the word."""
        next_bound = -(-bound * self._d // self._n)
        largest = self._d * bound + (self._n * next_bound - self._d * bound) // 2
        return largest <= self._word.store_limit and (not self.is_short or next_bound <= 1 << SHORT_STORE_BITS)

    def __getitem__(self, index: int) -> Digits:
        """The digits of step ``index``, counted from the stream's start."""
        steps = self._steps
        if index >= len(steps):
            # A copy, published in one assignment: threads may ask at the same time. Twice as long, so that it is rare.
            steps = steps.copy()
            for _ in range(len(steps), 2 * index + 1):
                steps.append(self._after(steps[-1].next_bound))
            self._steps = steps
        return steps[index]

    def _after(self, previous: int) -> Digits:
        n, d, bound, spills = self._n, self._d, previous, 0
        while not self._fits(bound):
            bound, spills = -(-bound // 256), spills + 1
        next_bound = -(-bound * d // n)
        return Digits(n, d, spills, previous, bound, next_bound, (n * next_bound - d * bound) // 2)


@functools.lru_cache(maxsize=64)
def store_schedule(gamma: Fraction, word: Word) -> StoreSchedule:
    """The schedule of every stream with this gamma and word: shared, but for a training that runs through many."""
    return StoreSchedule(gamma, word)


def floor_divide(value: Tensor, divisor: int) -> Tensor:
    """Floor division of integers, any sign (a shift where the divisor is a power of two: exact and much faster)."""
    if divisor & (divisor - 1) == 0:
        return value >> (divisor.bit_length() - 1)
    sign = value >> (8 * value.element_size() - 1)
    quotient = torch.div(value ^ sign, divisor, rounding_mode="trunc")
    return quotient.bitwise_xor_(sign)


def scaled(value: Tensor, factor: Fraction) -> Tensor:
    """``value * factor`` rounded to the nearest integer, half to that of even ``value div d``; n/d with d <= 128.

    A function of the integer alone. Half always up would push what is scaled many times away from 0.
    """
    n, d = factor.numerator, factor.denominator
    quotient = floor_divide(value, d)
    rest = (value - quotient * d).mul_(2 * n).add_(d - 1).add_(quotient & 1)
    return quotient.mul_(n).add_(floor_divide(rest, 2 * d))


def to_fixed(value: Tensor, factor: float, word: Word) -> Tensor:
    """``value * factor`` rounded to the nearest integer, half to even; saturated at +-limit, NaN becomes 0.

    The product is taken in ``word.compute_dtype``, ``factor`` rounded to it. Where it stays below ``word.limit``, the
    saturation changes nothing.
    """
    limit = float(word.limit)
    scaled = value.to(word.compute_dtype) * factor
    return torch.nan_to_num_(scaled, nan=0.0, posinf=limit, neginf=-limit).clamp_(-limit, limit).round_().to(word.dtype)


def to_float(value: Tensor, exponent: int, word: Word, dtype: torch.dtype) -> Tensor:
    """``value * 2**-exponent`` in ``dtype``: a function of the integer alone, on every device."""
    return value.to(word.compute_dtype).mul_(math.ldexp(1.0, -exponent)).to(dtype)


def write_float(value: Tensor, exponent: int, word: Word, into: Tensor) -> None:
    """`to_float` into a tensor that is there already."""
    if value.is_cuda and word.dtype == torch.int32 and torch.get_default_dtype() == torch.float32:
        # One pass that computes in float32; on the CPU the types would be changed in passes of their own.
        torch.mul(value, math.ldexp(1.0, -exponent), out=into)
    elif into.dtype == word.compute_dtype:
        into.copy_(value).mul_(math.ldexp(1.0, -exponent))
    else:
        into.copy_(to_float(value, exponent, word, into.dtype))


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


def checksum(x: Tensor, v: Tensor, s: Tensor, first: int = 0) -> Tensor:
    """One integer that tells this state from another; ``first`` is the position of the first element of a piece.

    The sum over the elements, modulo 2**bits, of ``mix(x*X + v*V + s + i*I)`` with i the element's position and odd
    constants. ``mix`` is a bijection that is not linear: any change of one of x, v, s at one element is seen for
    certain; any other change, errors that compensate each other or change places included, but for about one case in
    2**bits.
    """
    mixed = (x * 0x27D4EB2F).add_(v * 0x165667B1).add_(s)
    places = torch.arange(first, first + x.numel(), dtype=x.dtype, device=x.device)
    mixed.add_(places.view(x.shape), alpha=0x1E3779B1)
    mixed = _fold(_fold(mixed).mul_(0x2C1B3C6D))
    return mixed.sum(dtype=mixed.dtype)


def _fold(value: Tensor) -> Tensor:
    """The high half of the bits, exclusive-ored into the low half. In place."""
    bits = 8 * value.element_size()
    shift = bits // 2 - 1
    # >> copies the sign; the mask leaves the bits that a logical shift would give.
    return value.bitwise_xor_((value >> shift).bitwise_and_((1 << (bits - shift)) - 1))
