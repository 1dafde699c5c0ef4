"""Norms in a trace see the batch as they do in training, so that the scale that is chosen fits a training step.

A trace runs in eval mode. There a batch norm divides by its running statistics, which in a network that is new, or on
inputs that are not those that it knows, may have nothing to do with what it measures in training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

# By function: the argument that says whether the batch is measured.
_MEASURES: dict[Callable[..., Any], str] = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}
_SIGNATURES = {function: inspect.signature(function) for function in _MEASURES}


class batches_measured(TorchFunctionMode):  # noqa: N801 (a context manager, named as one)
    """Inside, batch norms take the statistics of what they get, and their running ones are neither read nor moved.

    Those stay that are frozen (in eval mode in a model that trains), and all that get one value for each channel, where
    there is nothing to measure.

    Args:
        model: as its owner left it, before it was put in eval mode for the trace.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        statistics = ((module, getattr(module, "running_mean", None)) for module in model.modules())
        frozen = (running for module, running in statistics if model.training and not module.training)
        self._frozen = {id(running) for running in frozen if running is not None}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _MEASURES:
            return func(*args, **kwargs)
        given = _SIGNATURES[func].bind(*args, **kwargs).arguments
        running = given.get("running_mean")
        if running is None or id(running) in self._frozen or not _is_measurable(given["input"], func):
            return func(*args, **kwargs)
        return func(**{**given, "running_mean": None, "running_var": None, _MEASURES[func]: True})


def _is_measurable(value: torch.Tensor, func: Callable[..., Any]) -> bool:
    """Whether there is more than one value for each mean."""
    if value.dim() < 2 or value.numel() == 0:
        return False
    kept = value.shape[1] if func is F.batch_norm else value.shape[0] * value.shape[1]
    return value.numel() > kept
