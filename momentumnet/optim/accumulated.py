"""Gradients that a closure adds to: of its two calls only the first one would do so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from momentumnet.errors import MomentumNetWarning


@contextmanager
def told_if_accumulated(optimizer: str, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Context of a closure's first call; warns, behind it, if it adds to gradients of backward passes outside of it.

    Told by the smallest of the parameters: when a gradient arrives there, another one that is not zero stands there
    still. zero_grad takes it away, or sets it to zero in place.
    """
    parameter = min(filter(_has_plain_gradient, parameters), key=Tensor.numel, default=None)
    if parameter is None:
        yield
        return
    before = parameter.grad
    found: list[Tensor | bool] = []  # of the first that arrives, unread

    def arrives(_: Tensor) -> None:
        if not found:
            found.append(before is not None and parameter.grad is before and before.any())

    hook = parameter.register_hook(arrives)
    try:
        yield
    finally:
        hook.remove()
    if found and found[0]:
        warnings.warn(
            f"{optimizer}.step: gradients were there already, and the closure added to them (of batches that were "
            "accumulated outside of it, as by Lightning's accumulate_grad_batches?). Its second call begins without "
            "them, so that the step is that of its own batches alone. Begin it with zero_grad() and accumulate inside, "
            "or use first_step() and second_step()",
            MomentumNetWarning,
            stacklevel=7,
        )


def _has_plain_gradient(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return parameter.requires_grad and type(gradient) is Tensor and gradient.layout == torch.strided
