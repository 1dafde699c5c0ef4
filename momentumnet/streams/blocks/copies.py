"""A copy of a model; where there can be none, what of the model stands in the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from momentumnet.errors import ConversionError
from momentumnet.recompute.values.objects import Held
from momentumnet.streams.blocks.wrapped import check_can_be_copied

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model) -> Model:
    """A deep copy.

    Raises:
        ConversionError: PyTorch cannot copy the model's tensors, as fake ones; or a module holds a tensor with an
            autograd graph, which cannot be copied; says where. Or the model is sharded already.
    """
    check_can_be_copied(model)
    if any(isinstance(tensor, FakeTensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ConversionError("the model's tensors are fake, and PyTorch cannot copy such tensors; pass inplace=True")
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        place = next(_tensors_with_a_graph(model), None)
        if place is None:
            raise
        raise ConversionError(
            f"the model cannot be copied: {place} holds a tensor that an earlier forward computed, with its autograd "
            "graph. Pass inplace=True, make that forward under torch.no_grad(), or take the tensor away"
        ) from error


def _tensors_with_a_graph(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if any(tensor.grad_fn is not None for tensor in Held([value]).tensors):
                yield f"attribute {name!r} of module {path or '(root)'!r}"
