"""The momentum rule as a coupling: v <- gamma v + (1 - gamma) f; x <- x + v."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic import adjoint
from momentumnet.arithmetic.adjoint import Gradients
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.core.state.coupling import FloatState
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.plain import PlainState


class Momentum:
    """The rule at one gamma, an exact fraction in [0, 1]; at 0 there is no velocity, and nothing to undo."""

    def __init__(self, gamma: Fraction) -> None:
        self.gamma = gamma
        self._factor = float(gamma)  # the compiler of PyTorch 2.11 cannot trace arithmetic of fractions

    @property
    def is_reversible(self) -> bool:
        return self.gamma > 0

    def draw_weight(self, *, first: bool) -> Fraction:
        return 1 - self.gamma

    def floats(self, x: Tensor, v: Tensor | None, *, finite_only: bool = False) -> FloatState:
        return FloatState(x, v, self.gamma, finite_only=finite_only)

    def integers(
        self, x: Tensor, v: Tensor | None, exponent: int, name: str, bits: int, *, word: Word, careful: bool
    ) -> ExactState:
        return ExactState(x, v, self.gamma, exponent, name, bits, word=word, careful=careful)

    def plain(self, x: Tensor, v: Tensor | None) -> PlainState:
        return PlainState(x, v, self.gamma)

    def adjoint(
        self, grad_x: Tensor, grad_v: Tensor, weight: float, *, branch_is_output: bool, overwrite: bool
    ) -> Gradients:
        return adjoint.adjoint(
            grad_x, grad_v, self._factor, weight, branch_is_output=branch_is_output, overwrite=overwrite
        )

    def velocity_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return adjoint.velocity_dtype(dtype, self._factor)
