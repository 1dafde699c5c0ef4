r"""The additive coupling of two streams (RevNet, Gomez et al., NeurIPS 2017; Reformer; reversible ViTs).

    (x, v) <- (v + f(x), x)

x is what the next block is called on, v the other stream. In integers a step is undone by a subtraction: exact without
a store, at zero bits a block.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic.adjoint import Gradients
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.two_stream_step import TwoStreamStep
from momentumnet.core.coupling import FloatState, NonFiniteBranch, Undo, magnitude_of
from momentumnet.core.exact_state import ExactState
from momentumnet.core.inference import counted
from momentumnet.core.plain import PlainState


class Additive:
    """The rule; a branch has weight 1, and v is multiplied with nothing."""

    gamma = Fraction(0)
    is_reversible = True
    weight = Fraction(1)

    def floats(self, x: Tensor, v: Tensor | None, *, finite_only: bool = False) -> FloatState:
        return AdditiveFloats(x, v, self.gamma, finite_only=finite_only)

    def integers(
        self, x: Tensor, v: Tensor | None, exponent: int, name: str, bits: int, *, word: Word, careful: bool
    ) -> ExactState:
        # A gamma of 1 loses nothing: its store holds nothing, in no bits at rest.
        step = TwoStreamStep(selection.for_tensor(x))
        return ExactState(x, v, Fraction(1), exponent, name, bits, word=word, careful=careful, kernels=step)

    def plain(self, x: Tensor, v: Tensor | None) -> PlainState:
        return AdditivePlain(x, v, self.gamma)

    def adjoint(
        self, grad_x: Tensor, grad_v: Tensor, weight: float, *, branch_is_output: bool, overwrite: bool
    ) -> Gradients:
        """grad_f = grad_v = grad_x of behind the step, grad_x = grad_v of behind it."""
        grad_position = grad_v.to(grad_x.dtype)
        return grad_x, grad_x, grad_position if branch_is_output else grad_position - grad_x

    def velocity_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype  # it is the gradient of the other x


class AdditiveFloats(FloatState):
    """Both streams as floats: rounding is what the inverse loses, a bit or two over many blocks."""

    def step(self, branch: Branch, weight: Fraction, coarsest: int | None = None) -> Undo:
        f = branch.value()
        if self.careful and not math.isfinite(magnitude_of(f)):
            raise NonFiniteBranch
        with counted():
            self.x, self.v = self._known_velocity() + f.to(self._dtype), self.x
        self._report = None
        return Undo()

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        return self._known_velocity().to(dtype, copy=True)

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        self.x, self.v = self._known_velocity(), self.x - branch.value().to(self._dtype)
        self._report = None


class AdditivePlain(PlainState):
    """Both streams in ordinary operations."""

    def step(self, branch: Branch, weight: Fraction) -> Tensor:
        f = branch.value().to(self._dtype)
        with counted():
            self._x, self._v = f if self._v is None else self._v + f, self._x
            return self.output(branch.y.dtype, 0.0)
