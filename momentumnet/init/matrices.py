"""Matrices and biases of a model's layers: the linear maps that a parameter consists of, and rows of padding."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

# Of recurrent and attention layers: the parameters that stack several maps, and the attribute with one map's rows.
_STACKED = {"weight_ih": "hidden_size", "weight_hh": "hidden_size", "in_proj_weight": "embed_dim"}
_OF_CONVOLUTIONS = ("kernel_size", "stride", "padding", "dilation")


def maps_of(module: nn.Module, name: str, weight: Tensor, *, stacked: int = 1) -> list[Tensor]:
    """The linear maps that a weight consists of, as views of shape (out, in, ...) without gradients.

    These are the gates of a recurrent layer, queries, keys and values, the groups of a convolution, and the matrices of
    a stack of three dimensions (experts). What a layer takes comes first in the weight of a transposed convolution, and
    in that of a ``Conv1D`` of transformers.

    Args:
        module: The layer that multiplies by the weight.
        name: The parameter's own name in it.
        weight: Its value.
        stacked: How many projections are known to stand in it one after the other.

    Raises:
        ValueError: it is no multiple of so many.
    """
    weight = weight.detach()
    if _is_conv1d(module) and weight.dim() == 2:
        weight = weight.t()
    if stacked > 1:
        return _parts_of(weight, stacked)
    for prefix, attribute in _STACKED.items():
        rows = _number(module, attribute)
        if name.startswith(prefix) and rows:
            return list(weight.split(rows))
    if weight.dim() == 3 and len(weight) > 1 and not _is_one_kernel(module):
        return list(weight)
    groups = _number(module, "groups")
    # Somebody else's module may call something else so.
    maps = list(weight.chunk(groups)) if groups and not len(weight) % groups else [weight]
    return [part.transpose(0, 1) for part in maps] if getattr(module, "transposed", False) is True else maps


def zero_padding(model: nn.Module, weights: Collection[nn.Parameter]) -> None:
    """Make rows of padding in these tables zero again, wherever the model looks up in them."""
    drawn = set(map(id, weights))
    for module in model.modules():
        table, row = module._parameters.get("weight"), getattr(module, "padding_idx", None)
        if table is not None and id(table) in drawn and isinstance(row, int):
            table.detach()[row].zero_()


def biases_of(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The trainable biases of the module that holds the weight ``name``."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return [
        parameter.detach()
        for own, parameter in owner._parameters.items()
        if parameter is not None and parameter.dim() == 1 and "bias" in own and parameter.requires_grad
    ]


def _parts_of(weight: Tensor, count: int) -> list[Tensor]:
    """Matrices of one shape that stand along the longer side."""
    side = 0 if weight.shape[0] >= weight.shape[1] else 1
    if weight.shape[side] % count:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} does not stack {count} matrices of one shape")
    return list(weight.chunk(count, dim=side))


def _is_one_kernel(module: nn.Module) -> bool:
    """Whether three dimensions are those of a convolution, or of a bilinear map."""
    return isinstance(module, nn.Bilinear) or any(hasattr(module, name) for name in _OF_CONVOLUTIONS)


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a layer is transformers' linear one, whose weight is (in, out)."""
    return hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def _number(module: nn.Module, attribute: str) -> int:
    value: Sequence[int] | int | None = getattr(module, attribute, None)
    return value if isinstance(value, int) and value > 0 else 0
