r"""What couplings have in common whose next x goes by a branch and the two x before it.

    x' = a x + b v + w f;  v' = x

v is the x of the block before. A coupling is its coefficients a and b, by the weight w of the branch, and how w comes
about: `core.rules.additive`, `core.rules.bdia` and `core.rules.dr2net` are one file each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from fractions import Fraction

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.adjoint import Gradients
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.layout import lying_as
from momentumnet.arithmetic.momentum_step import Branch
from momentumnet.arithmetic.two_stream_step import Coefficients, TwoStreamStep
from momentumnet.core.state.coupling import (
    Coupling,
    FloatState,
    NonFiniteBranch,
    Undo,
    magnitude_of,
    strides_beside,
)
from momentumnet.core.state.exact_state import ExactState
from momentumnet.core.state.plain import PlainState
from momentumnet.core.tensors.inference import counted


class TwoStep(ABC):
    """A rule of this kind."""

    gamma: Fraction
    """|b|, whose digits are put aside: the resolution of the integers goes by it."""
    is_reversible = True
    is_residual_in_eval = False
    """Whether the residual network itself is what it computes in eval mode."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def coefficients(self, weight: float) -> Coefficients:
        """a and b beside a branch of this weight. Traced by compilers: no arithmetic of fractions."""

    @property
    def digits_lost(self) -> float:
        """Decimal digits that the inverse in floats loses in a block."""
        return -math.log10(self.gamma)

    def of(self, module: nn.Module) -> Coupling:
        """The rule of a pass that begins with this block."""
        return self

    def draw_weight(self, *, first: bool) -> Fraction:
        return Fraction(1)

    def floats(self, x: Tensor, v: Tensor | None, *, finite_only: bool = False) -> FloatState:
        return TwoStepFloats(x, v, self, finite_only=finite_only)

    def integers(
        self, x: Tensor, v: Tensor | None, exponent: int, name: str, bits: int, *, word: Word, careful: bool
    ) -> ExactState:
        step = TwoStreamStep(selection.for_tensor(x), self.coefficients)
        return ExactState(x, v, self.gamma, exponent, name, bits, word=word, careful=careful, kernels=step)

    def plain(self, x: Tensor, v: Tensor | None) -> PlainState:
        return TwoStepPlain(x, v, self)

    def adjoint(
        self, grad_x: Tensor, grad_v: Tensor, weight: float, *, branch_is_output: bool, overwrite: bool
    ) -> Gradients:
        """grad_f = w grad_x', grad_v = b grad_x', grad_x = grad_v' + a grad_x'.

        Gradients of half types are added and multiplied in float32, and rounded once.
        """
        a, b = self.coefficients(weight).floats
        wide = grad_x.float() if grad_x.dtype.itemsize < 4 else grad_x
        grad_branch = _times(wide, weight)
        grad_position = grad_v.to(wide.dtype)
        # Where y is x + f, f = y - x passes -grad_f on to x.
        through = a if branch_is_output else a - weight
        if through:
            grad_position = grad_position + _times(wide, through)
        return grad_branch.to(grad_x.dtype), _times(wide, b).to(grad_x.dtype), grad_position.to(grad_x.dtype)

    def velocity_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype  # it is the gradient of the other x


class TwoStepFloats(FloatState):
    """x and the x before as floats: the inverse loses 1/|b| of its digits at each step, and what rounding takes."""

    def __init__(self, x: Tensor, v: Tensor | None, rule: TwoStep, *, finite_only: bool = False) -> None:
        super().__init__(x, v, rule.gamma, finite_only=finite_only)
        self._rule = rule

    def step(self, branch: Branch, weight: Fraction, coarsest: int | None = None) -> Undo:
        f = branch.value()
        if self.careful and not math.isfinite(magnitude_of(f)):
            raise NonFiniteBranch
        coefficients = self._rule.coefficients(float(weight))
        with counted():
            before, self.v = self.v, self.x
            self.x = _moved(self.v, before, f.to(self._dtype), float(weight), coefficients)
        self._report = None
        # The x before comes back as it lies; the one before it is computed.
        return Undo() if before is None or self._alias else Undo(strides=strides_beside(before, self.x))

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        return self._known_velocity().to(dtype, copy=True)

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        x, coefficients = self._known_velocity(), self._rule.coefficients(float(weight))
        rest = self.x - _moved(x, None, branch.value().to(self._dtype), float(weight), coefficients)
        b = coefficients.floats[1]
        self.x, self.v = x, lying_as(rest / b, undo.strides) if b else torch.zeros_like(x)
        self._report = None


class TwoStepPlain(PlainState):
    """The rule in ordinary operations."""

    def __init__(self, x: Tensor, v: Tensor | None, rule: TwoStep) -> None:
        super().__init__(x, v, rule.gamma)
        self._rule = rule

    def step(self, branch: Branch, weight: Fraction) -> Tensor:
        f, coefficients = branch.value().to(self._dtype), self._rule.coefficients(float(weight))
        with counted():
            self._x, self._v = _moved(self._x, self._v, f, float(weight), coefficients), self._x
            return self.output(branch.y.dtype, 0.0)


def _moved(x: Tensor, v: Tensor | None, f: Tensor, weight: float, coefficients: Coefficients) -> Tensor:
    """The next x; a v of None is 0. What is multiplied with 0 is left out: it may be infinite."""
    a, b = coefficients.floats
    # A new tensor in any case: f may be the block's own output. It comes first: so does the sum lie in memory.
    moved = f * weight
    if a:
        moved = moved + _times(x, a)
    return moved if v is None or not b else moved + _times(v, b)


def _times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value * factor
