"""The first step of an optimizer, as GradInit looks ahead to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.loss.derivatives import as_real
from momentumnet.options import one_of, positive

_STEP_SIZES = {"sgd": 0.1, "adam": 1e-3}


@dataclass(frozen=True)
class FirstStep:
    """``theta - eta A[g]``, and the norm in which the gradient is held small.

    Attributes:
        optimizer: "sgd" (A[g] = g, 2-norm) or "adam" (A[g] = sign(g), 1-norm: its moments' ratio in the first step).
        step_size: eta.
    """

    optimizer: str
    step_size: float

    @classmethod
    def of(cls, optimizer: str, step_size: float | None) -> FirstStep:
        """The step of that optimizer, of its default size where none is given.

        Raises:
            ValueError: an optimizer that is not known, or a step size that is not positive.
        """
        one_of("optimizer", optimizer, _STEP_SIZES)
        size = _STEP_SIZES[optimizer] if step_size is None else step_size
        positive("step_size", size)
        return cls(optimizer, size)

    @property
    def order(self) -> int:
        """1 or 2: of the gradient's norm. Along A[g] the loss changes at the rate ||g||_1 or ||g||_2^2."""
        return 2 if self.optimizer == "sgd" else 1

    @property
    def passes_gradients(self) -> bool:
        """Whether A has a derivative other than zero."""
        return self.optimizer == "sgd"

    def __call__(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """A[g]."""
        return list(gradient) if self.optimizer == "sgd" else [_signs(g) for g in gradient]

    def norm_derivative(self, gradient: Sequence[Tensor], size: float) -> list[Tensor]:
        """The derivative of ||g||_p, which is ``size``, with respect to g."""
        return [g / size for g in gradient] if self.order == 2 else [_signs(g) for g in gradient]


def _signs(gradient: Tensor) -> Tensor:
    """By real numbers, as Adam takes complex parameters."""
    signs = torch.sign(as_real(gradient))
    return torch.view_as_complex(signs) if gradient.is_complex() else signs
