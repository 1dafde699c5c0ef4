"""Matrices and biases of a model's layers: several matrices may be stacked in one parameter."""

from __future__ import annotations

import torch
from torch import nn


def matrices_of(weight: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The ``count`` matrices that are stacked in a weight along its longer side, as views without gradients.

    Raises:
        ValueError: that side is no multiple of ``count`` long.
    """
    weight = weight.detach()
    if count == 1:
        return [weight]
    side = 0 if weight.shape[0] >= weight.shape[1] else 1
    if weight.shape[side] % count:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} does not stack {count} matrices of one shape")
    return list(weight.chunk(count, dim=side))


def biases_of(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The trainable biases of the module that holds the weight ``name``."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return [
        parameter.detach()
        for own, parameter in owner._parameters.items()
        if parameter is not None and parameter.dim() == 1 and "bias" in own and parameter.requires_grad
    ]
