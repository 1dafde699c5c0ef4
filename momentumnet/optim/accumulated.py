"""Gradients that a closure adds to: of its two calls only the first one would do so."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable

from torch import Tensor

from momentumnet.errors import MomentumNetWarning


class Accumulated:
    """Whether a closure adds to gradients of backward passes that have run before it, outside of it.

    Told by one parameter: zero_grad takes its gradient away, so that the closure's is another tensor. One that the last
    step has left is no sign, as it may be set to zero in place.

    Args:
        parameters: The optimizer's, before the closure is called.
        left: What `left_by_step` gave behind the last step; None before the first.
    """

    def __init__(self, parameters: Iterable[Tensor], left: weakref.ref[Tensor] | None) -> None:
        self._parameter = next((parameter for parameter in parameters if parameter.grad is not None), None)
        self._gradient = None if self._parameter is None else self._parameter.grad
        self._is_own = self._gradient is not None and left is not None and left() is self._gradient

    def warn(self, optimizer: str) -> None:
        """Warn, behind the closure's first call, if it has added to them."""
        if self._parameter is None or self._is_own or self._parameter.grad is not self._gradient:
            return
        warnings.warn(
            f"{optimizer}.step: gradients were there already, and the closure added to them (of batches that were "
            "accumulated outside of it, as by Lightning's accumulate_grad_batches?). Its second call begins without "
            "them, so that the step is that of its own batches alone. Begin it with zero_grad() and accumulate inside, "
            "or use first_step() and second_step()",
            MomentumNetWarning,
            stacklevel=5,
        )


def left_by_step(parameters: Iterable[Tensor]) -> weakref.ref[Tensor] | None:
    """What a step leaves: the first of the gradients, by a reference that does not keep it."""
    gradient = next((parameter.grad for parameter in parameters if parameter.grad is not None), None)
    return None if gradient is None else weakref.ref(gradient)
