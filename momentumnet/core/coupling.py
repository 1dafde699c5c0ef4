r"""What a step of a stream is: the momentum rule, its exact inverse and its linear adjoint.

    v <- gamma * v + w * f        w = 1 - gamma        (Sander, Ablin, Blondel, Peyre, ICML 2021, equation 4)
    x <- x + v

`ExactState` carries x and v as integers, so that the inverse is exact at any depth; `FloatState` carries floats: the
plain rule, cheapest, with an inverse that loses log2(1/gamma) bits a step. Both offer the same five operations, which
is all that the tape (`momentumnet.core.tape`) asks of a coupling; another coupling is another pair of such states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from momentumnet.core import fixed_point as fp
from momentumnet.errors import StateRangeError

# Bits kept free above the largest magnitude known when a scale is chosen. One is enough: a coarser scale can be taken
# at any step, and every bit kept free here is a bit of precision lost at every step.
HEADROOM_BITS = 1
# Coarsest resolution of the exact state is 2**-MIN_EXPONENT.
MIN_EXPONENT = 0
# Relative difference of the norms at which a float reconstruction counts as wrong.
FLOAT_TOLERANCE = 1e-2


class NonFiniteBranch(ArithmeticError):  # noqa: N818 - a signal inside the engine, never seen by users
    """The branch, or the start of the stream, holds NaN or Inf, which no integer can carry."""


@dataclass(frozen=True)
class Undo:
    """What one step put aside so that it can be undone.

    ``spilled``: the store's bytes. Where the scale was made coarser first: by how many bits, and those bits of x and v.
    """

    spilled: tuple[Tensor, ...] = ()
    widened_bits: int = 0
    low_bits: tuple[Tensor, ...] | None = None


class State(Protocol):
    """The state (x, v) of a stream between two blocks."""

    def position(self, dtype: torch.dtype) -> Tensor:
        """x as handed to the next block."""

    def velocity(self, dtype: torch.dtype) -> Tensor:
        """v as a float tensor."""

    def step(self, branch: Tensor, weight: Fraction) -> Undo:
        """Move on by one block whose branch is given."""

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        """x before the last step, which needs no branch."""

    def undo(self, undo: Undo, branch: Tensor, weight: Fraction) -> None:
        """Take the last step back."""

    def fingerprint(self) -> tuple[float, ...]:
        """A few numbers that tell this state from another."""

    def matches(self, fingerprint: tuple[float, ...]) -> bool:
        """Whether this state is the one that the fingerprint was taken of."""


def choose_exponent(magnitude: float, word: fp.Word) -> int:
    """The scale k for values up to ``magnitude``: ``magnitude * 2**k`` leaves HEADROOM_BITS below the limit.

    Kept within MIN_EXPONENT (less headroom then, or none) and the word's finest scale. Magnitude 0 counts as 1.
    """
    exponent = word.bits - 2 - HEADROOM_BITS - math.frexp(magnitude or 1.0)[1]
    return min(max(exponent, MIN_EXPONENT), word.max_exponent)


class ExactState:
    """x, v and the store as integers: every step can be undone bit for bit.

    Args:
        x: start of the stream, a float tensor; float64 is carried in int64, all else in int32.
        v: initial velocity, or None for zero.
        gamma: n/d in (0, 1].
        exponent: the scale k, value = integer * 2**-k; lowered by itself on overflow.
        name: the stream's name, for errors.

    Raises:
        NonFiniteBranch: x or v holds NaN or Inf.
        StateRangeError: no scale can carry x and v.
    """

    def __init__(self, x: Tensor, v: Tensor | None, gamma: Fraction, exponent: int, name: str) -> None:
        self.word = fp.word_for(x.dtype)
        self.exponent = exponent
        self.steps = 0
        self._name = name
        self._schedule = fp.store_schedule(gamma, self.word)
        largest = float(_magnitude(x) if v is None else torch.maximum(_magnitude(x), _magnitude(v)))
        if not largest < self._reach():  # NaN included
            self.exponent = self._coarser_exponent(largest)
        scale = math.ldexp(1.0, self.exponent)
        self.x = fp.to_fixed(x, scale, self.word)
        self.v = torch.zeros_like(self.x) if v is None else fp.to_fixed(v, scale, self.word)
        self.s = torch.zeros_like(self.x)

    @property
    def capacity(self) -> float:
        """The magnitude for which the present scale would have been chosen, as a power of two."""
        return math.ldexp(1.0, self.word.bits - 2 - HEADROOM_BITS - self.exponent)

    def position(self, dtype: torch.dtype) -> Tensor:
        return fp.to_float(self.x, self.exponent, self.word, dtype)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        return fp.to_float(self.v, self.exponent, self.word, dtype)

    def step(self, branch: Tensor, weight: Fraction) -> Undo:
        """One step; on overflow the scale is made coarser first, its low bits put aside: exact, and never silent.

        Raises:
            NonFiniteBranch: the branch holds NaN or Inf; the state is as before.
            StateRangeError: no scale can carry the values; the state is as before.
        """
        bits, low_bits = 0, None
        while True:
            undo = Undo(self._step(branch, weight), bits, low_bits)
            largest = self._largest(branch, weight)
            if largest < self._reach():
                return undo
            self.undo(undo, branch, weight)
            bits = self.exponent - self._coarser_exponent(largest)
            low_bits = self._coarsen(bits)

    def _step(self, branch: Tensor, weight: Fraction) -> tuple[Tensor, ...]:
        v, self.s, spilled = fp.multiply(self.v, self.s, self._schedule[self.steps])
        self.v = v.add_(self._fixed(branch, weight))
        self.steps += 1
        self.x = self.x.add_(self.v).add_(self._carry())
        return spilled

    def _fixed(self, branch: Tensor, weight: Fraction) -> Tensor:
        return fp.to_fixed(branch, math.ldexp(float(weight), self.exponent), self.word)

    def _carry(self) -> Tensor:
        """What ``v + s/B`` rounded to the nearest integer has over v."""
        return fp.carry(self.s, self._schedule[self.steps].previous_bound)

    def _reach(self) -> float:
        """Magnitudes below this fit the present scale."""
        return math.ldexp(self.word.limit, -self.exponent)

    def _largest(self, branch: Tensor, weight: Fraction) -> float:
        """Largest magnitude among the weighted branch, x and v; infinite where the branch holds NaN or Inf."""
        if not branch.numel():
            return 0.0
        extremes = [*torch.aminmax(branch), *torch.aminmax(self.x), *torch.aminmax(self.v)]
        low, high, *integers = torch.stack([value.double() for value in extremes]).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            return math.inf
        return max(-low * float(weight), high * float(weight), math.ldexp(max(map(abs, integers)), -self.exponent))

    def _coarser_exponent(self, largest: float) -> int:
        """The scale for values up to ``largest``, which do not fit the present one."""
        if not math.isfinite(largest):
            raise NonFiniteBranch
        limit = math.ldexp(self.word.limit, -MIN_EXPONENT)
        if largest >= limit:
            raise StateRangeError(
                f"stream {self._name!r}: the largest magnitude, {largest:.4g}, does not fit the exact state "
                f"(below {limit:.4g} with {self.word.dtype}). "
                "Lower the activations, run this stream in float64, or convert it with arithmetic='float'."
            )
        return choose_exponent(largest, self.word)

    def _coarsen(self, bits: int) -> tuple[Tensor, ...]:
        """Make the scale coarser by ``bits``, rounding to nearest; return what `_refine` needs to undo it.

        The velocity is v + s/B, and s stays. So v + s/B rounded is what is divided: v alone would leave half a unit of
        bias, which a gamma near 1 carries on for many steps.
        """
        carry = self._carry()
        self.x, low_x = fp.split_low_bits(self.x, bits)
        self.v, low_v = fp.split_low_bits(self.v.add_(carry), bits)
        self.v.sub_(carry)
        self.exponent -= bits
        return fp.pack_low_bits(low_x, low_v, bits)

    def _refine(self, bits: int, low_bits: tuple[Tensor, ...]) -> None:
        """The inverse of `_coarsen`."""
        carry = self._carry()
        low_x, low_v = fp.unpack_low_bits(low_bits, bits)
        self.x = fp.join_low_bits(self.x, low_x, bits)
        self.v = fp.join_low_bits(self.v.add_(carry), low_v, bits).sub_(carry)
        self.exponent += bits

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        x = self._previous_x()
        if undo.low_bits is not None:
            low_x, _ = fp.unpack_low_bits(undo.low_bits, undo.widened_bits)
            x = fp.join_low_bits(x, low_x, undo.widened_bits)
        return fp.to_float(x, self.exponent + undo.widened_bits, self.word, dtype)

    def _previous_x(self) -> Tensor:
        return (self.x - self.v).sub_(self._carry())

    def undo(self, undo: Undo, branch: Tensor, weight: Fraction) -> None:
        self.x = self._previous_x()
        self.steps -= 1
        v = self.v.sub_(self._fixed(branch, weight))
        self.v, self.s = fp.divide(v, self.s, self._schedule[self.steps], undo.spilled)
        if undo.low_bits is not None:
            self._refine(undo.widened_bits, undo.low_bits)

    def fingerprint(self) -> tuple[float, ...]:
        return (int(fp.checksum(self.x, self.v, self.s)), self.exponent)

    def matches(self, fingerprint: tuple[float, ...]) -> bool:
        return self.fingerprint() == fingerprint


class FloatState:
    """x and v as floats (float32 for half types): the plain rule.

    The inverse divides by gamma: its error grows like gamma**-steps, and `matches` tells when it is past use.
    With ``finite_only`` (for a state that is to be rewound) a branch of NaN or Inf raises NonFiniteBranch.
    """

    def __init__(self, x: Tensor, v: Tensor | None, gamma: Fraction, *, finite_only: bool = False) -> None:
        self._gamma, self._finite_only = float(gamma), finite_only
        self._alias = not torch.is_grad_enabled()
        self._dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        self.x = x.detach().to(self._dtype)
        self.v = None if v is None else v.detach().to(self._dtype)

    def position(self, dtype: torch.dtype) -> Tensor:
        # A copy where gradients flow: the tensor handed out becomes part of a graph, the state must not.
        return self.x.detach() if self._alias and dtype == self._dtype else self.x.to(dtype, copy=True)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self.x, dtype=dtype) if self.v is None else self.v.to(dtype)

    def step(self, branch: Tensor, weight: Fraction) -> Undo:
        if self._finite_only and not math.isfinite(_magnitude(branch)):
            raise NonFiniteBranch
        branch = branch.to(self._dtype)
        self.v = branch * float(weight) if self.v is None else (self.v * self._gamma).add_(branch, alpha=float(weight))
        self.x = self.x + self.v
        return Undo()

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        return (self.x - self._known_velocity()).to(dtype)

    def undo(self, undo: Undo, branch: Tensor, weight: Fraction) -> None:
        v = self._known_velocity()
        self.x = self.x - v
        self.v = (v - branch.to(self._dtype) * float(weight)) / self._gamma

    def _known_velocity(self) -> Tensor:
        return torch.zeros_like(self.x) if self.v is None else self.v

    def fingerprint(self) -> tuple[float, ...]:
        velocity = 0.0 if self.v is None else float(torch.linalg.vector_norm(self.v))
        return (float(torch.linalg.vector_norm(self.x)), velocity)

    def matches(self, fingerprint: tuple[float, ...]) -> bool:
        scale = max(fingerprint[0], fingerprint[1], torch.finfo(self._dtype).tiny)
        return all(abs(a - b) <= FLOAT_TOLERANCE * scale for a, b in zip(self.fingerprint(), fingerprint, strict=True))


def _magnitude(value: Tensor) -> Tensor:
    """Largest absolute value, as float64."""
    if not value.numel():
        return torch.zeros((), dtype=torch.float64, device=value.device)
    low, high = torch.aminmax(value)
    return torch.maximum(low.double().abs(), high.double().abs())


def adjoint(grad_x: Tensor, grad_v: Tensor, gamma: Fraction, weight: Fraction) -> tuple[Tensor, Tensor]:
    """Transpose of one step: ``(grad of f, grad of v)``; the gradient of x is ``grad_x`` itself.

    With s = grad_x + grad_v:  grad_f = w s,  grad_v = gamma s. Linear, so it needs nothing of the state.
    """
    total = grad_x + grad_v
    return total * float(weight), total * float(gamma)


def flush_factor(gamma: Fraction) -> float:
    """gamma / (1 - gamma), for gamma < 1: times the last v, it is what endless empty blocks would still add to x."""
    return float(gamma / (1 - gamma))
