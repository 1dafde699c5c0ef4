"""Batch and instance normalisation in elementary operations: PyTorch's own have no third derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from momentumnet.streams.tracing.forwards import wrapped_forwards


def composite_norms(model: nn.Module) -> AbstractContextManager[None]:
    """Run ``F.batch_norm`` and ``F.instance_norm`` in the model, and so their modules, as means, products and roots.

    Running statistics are read where they are used and never moved.
    """
    mode = _CompositeNorms()

    # Each module for itself: a converted block is called again in backward, where its parent's call is over.
    def call(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if mode.active:
            return forward(*args, **kwargs)
        with mode:
            return forward(*args, **kwargs)

    return wrapped_forwards(model.modules(), call)


class _CompositeNorms(TorchFunctionMode):
    active = False

    def __enter__(self) -> Any:
        self.active = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.active = False
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        if func is F.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    statistics = None if training else (running_mean, running_var)
    return _normalised(input, (0, *range(2, input.dim())), statistics, weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    statistics = None if use_input_stats else (running_mean, running_var)
    return _normalised(input, tuple(range(2, input.dim())), statistics, weight, bias, eps)


def _normalised(
    x: Tensor,
    dims: tuple[int, ...],
    statistics: tuple[Tensor | None, Tensor | None] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """(N, C, ...) less its mean over ``dims``, over its deviation there; or by the statistics that are given."""

    def by_channel(values: Tensor) -> Tensor:
        return values.view((1, -1) + (1,) * (x.dim() - 2))

    mean, variance = statistics or (None, None)
    centred = x - (x.mean(dims, keepdim=True) if mean is None else by_channel(mean))
    spread = centred.square().mean(dims, keepdim=True) if variance is None else by_channel(variance)
    y = centred * (spread + eps).rsqrt()
    if weight is not None:
        y = y * by_channel(weight)
    return y if bias is None else y + by_channel(bias)
