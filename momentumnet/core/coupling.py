r"""What a step of a stream is: the momentum rule and its exact inverse (`arithmetic.adjoint` has its adjoint).

    v <- gamma * v + w * f        w = 1 - gamma        (Sander, Ablin, Blondel, Peyre, ICML 2021, equation 4)
    x <- x + v

`ExactState` (`momentumnet.core.exact_state`) carries x and v as integers, so that the inverse is exact at any depth;
`FloatState` carries floats: the plain rule, cheapest, with an inverse that loses log2(1/gamma) bits a step. Both offer
the operations of `State`, all that the tape (`momentumnet.core.tape`) asks of a coupling; another coupling is another
pair of such states.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic.momentum_step import Branch

# Relative difference of the norms at which a float reconstruction counts as wrong.
FLOAT_TOLERANCE = 1e-2


class NonFiniteBranch(ArithmeticError):  # noqa: N818 - a signal inside the engine, never seen by users
    """The branch, or the start of the stream, holds NaN or Inf, which no integer can carry."""


@dataclass(frozen=True)
class Undo:
    """What one step put aside so that it can be undone.

    ``spilled``: the store's byte. Where the scale was made coarser first: by how many bits, and those bits of x and v.
    """

    spilled: Tensor | None = None
    widened_bits: int = 0
    low_bits: tuple[Tensor, ...] | None = None


class State(Protocol):
    """The state (x, v) of a stream between two blocks."""

    def position(self, dtype: torch.dtype) -> Tensor:
        """x as handed to the next block."""

    def velocity(self, dtype: torch.dtype) -> Tensor:
        """v as a float tensor."""

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        """x + factor v, the same bits each time; a packed state stays packed."""

    def step(self, branch: Branch, weight: Fraction) -> Undo:
        """Move on by one block whose branch is given."""

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        """x before the last step, which needs no branch."""

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        """Take the last step back; ``ahead``: the position before will be asked for next."""

    def pack(self) -> None:
        """Wait for backward in as few bytes as can be."""

    def fork(self) -> State:
        """A state that goes on from here, never to be rewound, while this one waits as after `pack`."""

    def fingerprint(self) -> tuple[float, ...]:
        """A few numbers that tell this state from another."""

    def matches(self, fingerprint: tuple[float, ...]) -> bool:
        """Whether this state is the one that the fingerprint was taken of."""


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

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        return self.position(dtype) if not factor else (self.x + self._known_velocity() * factor).to(dtype)

    def step(self, branch: Branch, weight: Fraction) -> Undo:
        f = branch.value()
        if self._finite_only and not math.isfinite(magnitude_of(f)):
            raise NonFiniteBranch
        f = f.to(self._dtype)
        self.v = f * float(weight) if self.v is None else (self.v * self._gamma).add_(f, alpha=float(weight))
        self.x = self.x + self.v
        return Undo()

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        return (self.x - self._known_velocity()).to(dtype)

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        v = self._known_velocity()
        self.x = self.x - v
        self.v = (v - branch.value().to(self._dtype) * float(weight)) / self._gamma

    def pack(self) -> None:
        """Floats stay as they are."""

    def fork(self) -> FloatState:
        fork = copy.copy(self)  # steps make new tensors
        fork._finite_only = False
        return fork

    def _known_velocity(self) -> Tensor:
        return torch.zeros_like(self.x) if self.v is None else self.v

    def fingerprint(self) -> tuple[float, ...]:
        velocity = 0.0 if self.v is None else float(torch.linalg.vector_norm(self.v))
        return (float(torch.linalg.vector_norm(self.x)), velocity)

    def matches(self, fingerprint: tuple[float, ...]) -> bool:
        scale = max(fingerprint[0], fingerprint[1], torch.finfo(self._dtype).tiny)
        return all(abs(a - b) <= FLOAT_TOLERANCE * scale for a, b in zip(self.fingerprint(), fingerprint, strict=True))


def magnitude_of(value: Tensor) -> float:
    """Largest absolute value; NaN if there is one."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value)
    return float(torch.maximum(low.double().abs(), high.double().abs()))


def flush_factor(gamma: Fraction) -> float:
    """gamma / (1 - gamma), for gamma < 1: times the last v, it is what endless empty blocks would still add to x."""
    return float(gamma / (1 - gamma))
