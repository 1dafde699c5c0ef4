"""The matrices in a parameter: stacked projections are several; and the biases that belong to a weight."""

from __future__ import annotations

import torch
from torch import nn

# Queries, keys and values in one matrix, in this order, under the names that PyTorch, timm and others give it.
STACKED = frozenset({"in_proj_weight", "qkv", "Wqkv", "to_qkv", "qkv_proj", "in_proj", "c_attn"})


def matrices_of(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The matrices in the parameter ``name``, as views: three where it stacks queries, keys and values, else itself."""
    parameter = model.get_parameter(name)
    parts = name.split(".")
    own = parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]
    if own in STACKED and parameter.dim() == 2:
        rows, columns = parameter.shape
        if rows == 3 * columns:
            return list(parameter.detach().chunk(3))
        if columns == 3 * rows:  # a weight of shape (in, out)
            return list(parameter.detach().chunk(3, dim=1))
    return [parameter.detach()]


def biases_of(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The trainable biases of the module that holds the weight ``name``."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return [
        parameter.detach()
        for own, parameter in owner._parameters.items()
        if parameter is not None and parameter.dim() == 1 and "bias" in own and parameter.requires_grad
    ]
