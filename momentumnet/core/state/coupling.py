r"""What a step of a stream is: what the engine asks of a rule (`Coupling`) and of a state that moves by it (`State`).

The momentum rule (Sander, Ablin, Blondel, Peyre, ICML 2021, equation 4) is `momentumnet.core.rules.momentum`:

    v <- gamma * v + w * f        w = 1 - gamma
    x <- x + v

`ExactState` (`momentumnet.core.state.exact_state`) carries x and v as integers, so that the inverse is exact at any
depth; `FloatState` carries floats: the plain rule, cheapest, with an inverse that loses log2(1/gamma) bits a step.
Another coupling (`momentumnet.core.rules.two_step`) is a file with its own states, and the linear adjoint of its step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic.adjoint import Gradients
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.layout import lying_as
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.reports import read
from momentumnet.core.checks.audit import Fingerprint
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors.inference import counted, gradients_on

# Relative difference of the norms at which a float reconstruction counts as wrong.
FLOAT_TOLERANCE = 1e-2


class NonFiniteBranch(ArithmeticError):  # noqa: N818 - a signal inside the engine, never seen by users
    """The branch, or the start of the stream, holds NaN or Inf, which no integer can carry."""


@dataclass(frozen=True)
class Undo:
    """What one step put aside so that it can be undone.

    ``spilled``: the store's byte. Where the scale was made coarser first: by how many bits, and those bits of x and v.
    Of floats, the strides that what is computed anew had, if they are others than those of x behind the step.
    """

    spilled: Tensor | None = None
    widened_bits: int = 0
    low_bits: tuple[Tensor, ...] | None = None
    strides: tuple[int, ...] | None = None


class State(Protocol):
    """The state (x, v) of a stream between two blocks."""

    careful: bool
    """Whether it looks at every report at once; else nothing is read from the device."""

    def position(self, dtype: torch.dtype) -> Tensor:
        """x as handed to the next block."""

    def velocity(self, dtype: torch.dtype) -> Tensor:
        """v as a float tensor; a packed state stays packed."""

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        """x + factor v, the same bits each time; a packed state stays packed."""

    @property
    def exponent(self) -> int:
        """The scale of integers; 0 for floats."""

    @property
    def report(self) -> Tensor:
        """What the last step (or the start) has reported: `unfit` tells by it, once it is read, that it went wrong."""

    def unfit(self, magnitude: float) -> bool:
        """Whether a report that begins with this number says that values did not fit, or were NaN or Inf."""

    def unfit_on_device(self, magnitudes: Tensor) -> Tensor:
        """The same of many, unread."""

    def step(self, branch: Branch, weight: Fraction, coarsest: int | None = None) -> Undo:
        """Move on by one block whose branch is given; ``coarsest``: an exponent that the scale is taken to before."""

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        """x before the last step, which needs no branch."""

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        """Take the last step back; ``ahead``: the position before will be asked for next."""

    def extremes(self) -> Tensor | None:
        """What `pack` has to know of the integers, on the device; None if it needs nothing."""

    def pack(self, extremes: Sequence[float] | None = None) -> None:
        """Wait for backward in as few bytes as can be. Reads the device, unless it is given the `extremes`."""

    def fork(self, extremes: Sequence[float] | None = None) -> State:
        """A state that goes on from here, never to be rewound, while this one waits as after `pack`."""

    def fingerprint(self) -> Fingerprint:
        """What tells this state from another, unread."""


class Coupling(Protocol):
    """The rule by which a stream moves: makes its states, and knows the transpose of a step."""

    @property
    def gamma(self) -> Fraction:
        """What v is multiplied with from step to step, but for its sign: the resolution of the integers goes by it."""

    @property
    def is_reversible(self) -> bool:
        """Whether a step can be undone."""

    def draw_weight(self, *, first: bool) -> Fraction:
        """That of the next branch, which may go by chance; ``first``: that of a pass."""

    def floats(self, x: Tensor, v: Tensor | None, *, finite_only: bool = False) -> FloatState:
        """The state in floats at a stream's start."""

    def integers(
        self, x: Tensor, v: Tensor | None, exponent: int, name: str, bits: int, *, word: Word, careful: bool
    ) -> State:
        """The exact state at a stream's start: `ExactState` has the arguments and the errors."""

    def plain(self, x: Tensor, v: Tensor | None) -> PlainState:
        """The state in ordinary, differentiable operations."""

    def adjoint(
        self, grad_x: Tensor, grad_v: Tensor, weight: float, *, branch_is_output: bool, overwrite: bool
    ) -> Gradients:
        """The gradients of a step's branch (or, as `arithmetic.adjoint` says, its block's output), v and x."""

    def velocity_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type in which the gradient of v travels in a stream of ``dtype``."""


class FloatState:
    """x and v as floats (float32 for half types): the plain rule.

    The inverse divides by gamma: its error grows like gamma**-steps, and fingerprints tell when it is past use.
    With ``finite_only`` (for a state that is to be rewound) a branch of NaN or Inf raises NonFiniteBranch.
    """

    exponent = 0

    def __init__(self, x: Tensor, v: Tensor | None, gamma: Fraction, *, finite_only: bool = False) -> None:
        self._gamma, self.careful = float(gamma), finite_only
        self._alias = not (gradients_on() or finite_only)  # nothing is rewound then
        self._dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        with counted():
            self.x = x.detach().to(self._dtype, copy=x.is_inference())
        self.v = None if v is None else v.detach().to(self._dtype)
        self._report: Tensor | None = None

    def position(self, dtype: torch.dtype) -> Tensor:
        # A copy where gradients flow: the tensor handed out becomes part of a graph, the state must not.
        with counted():
            return self.x.detach() if self._alias and dtype == self._dtype else self.x.to(dtype, copy=True)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self.x, dtype=dtype) if self.v is None else self.v.to(dtype)

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        return self.position(dtype) if not factor else (self.x + self._known_velocity() * factor).to(dtype)

    @property
    def report(self) -> Tensor:
        """The norms of x and v: not finite where x holds NaN or Inf."""
        if self._report is None:
            norm = torch.linalg.vector_norm(self.x)
            self._report = torch.stack(
                [norm, norm.new_zeros(()) if self.v is None else torch.linalg.vector_norm(self.v)]
            )
        return self._report

    def unfit(self, magnitude: float) -> bool:
        return not math.isfinite(magnitude)

    def unfit_on_device(self, magnitudes: Tensor) -> Tensor:
        return ~magnitudes.isfinite()

    def step(self, branch: Branch, weight: Fraction, coarsest: int | None = None) -> Undo:
        f = branch.value()
        if self.careful and not math.isfinite(magnitude_of(f)):
            raise NonFiniteBranch
        f = f.to(self._dtype)
        with counted():
            # In this order a sum lies in memory as what the block has returned, as sums of the network as it is do.
            v = f * float(weight)
            self.v = v if self.v is None else v.add_(self.v, alpha=self._gamma)
            before, self.x = self.x, self.v + self.x
        self._report = None
        return Undo() if self._alias else Undo(strides=strides_beside(before, self.x))

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        return lying_as((self.x - self._known_velocity()).to(dtype), undo.strides)

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        v = self._known_velocity()
        self.x = self.previous_position(undo, self._dtype)
        self.v = (v - branch.value().to(self._dtype) * float(weight)) / self._gamma
        self._report = None

    def extremes(self) -> Tensor | None:
        return None

    def pack(self, extremes: Sequence[float] | None = None) -> None:
        """Floats stay as they are."""

    def fork(self, extremes: Sequence[float] | None = None) -> FloatState:
        fork = copy.copy(self)  # steps make new tensors
        fork.careful = False
        return fork

    def _known_velocity(self) -> Tensor:
        return torch.zeros_like(self.x) if self.v is None else self.v

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.report, tolerance=FLOAT_TOLERANCE)


def strides_beside(value: Tensor, x: Tensor) -> tuple[int, ...] | None:
    """Those of ``value``, if they are others than those of ``x``."""
    return None if value.is_nested or value.stride() == x.stride() else value.stride()


def magnitude_of(value: Tensor) -> float:
    """Largest absolute value; NaN if there is one."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value)
    return float(read(torch.maximum(low.double().abs(), high.double().abs())))


def flush_factor(gamma: Fraction) -> float:
    """gamma / (1 - gamma), for gamma < 1: times the last v, it is what endless empty blocks would still add to x."""
    return float(gamma / (1 - gamma))
