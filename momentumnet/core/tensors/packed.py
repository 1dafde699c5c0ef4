"""Several tensors packed in one: what blocks hand on together lies one behind the other in a 1-D tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from momentumnet.core.tensors.inference import counted, gradients_on

Key = int | str


@dataclass(frozen=True)
class Companion:
    """A tensor that a stream carries beside the one that its blocks return first.

    Attributes:
        arguments: for each block the position or keyword in which it takes the tensor.
        outputs: for each block its place in the tuple, list or mapping that the block returns.
        shape: its shape in the trace.
    """

    arguments: tuple[Key, ...]
    outputs: tuple[int, ...]
    shape: tuple[int, ...] = ()


def parts_of(
    whole: Tensor, shapes: Sequence[torch.Size], *, plainly: bool, own_counters: bool = False
) -> tuple[Tensor, ...]:
    """Tensors of these shapes that lie in the packed one, one behind the other.

    They share its in-place counter, so that a write to one of them is seen as a write to it.

    Args:
        whole: the packed one.
        shapes: of the parts.
        plainly: whether by ordinary, differentiable operations, as views.
        own_counters: whether each has a counter of its own: no block will take the packed tensor any more.
    """
    if plainly:
        pieces = whole.split([prod(shape) for shape in shapes])
        return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))
    if gradients_on() and whole.requires_grad:
        parts: tuple[Tensor, ...] = _Unpack.apply(whole, shapes, own_counters)
        return parts
    return _aliases(whole, shapes, own_counters=own_counters)


class _Unpack(torch.autograd.Function):
    """The packed tensor -> its parts, none of them a view: a block may try to write to them as to any tensor."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, shapes: Sequence[torch.Size], own_counters: bool) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.keeps_values = False
        ctx.counts, ctx.kind = [prod(shape) for shape in shapes], (whole.dtype, whole.device)
        return _aliases(whole, shapes, own_counters=own_counters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        if all(grad is None for grad in grads):
            return None, None, None
        dtype, device = ctx.kind
        flat = [
            torch.zeros(count, dtype=dtype, device=device) if grad is None else grad.reshape(-1)
            for grad, count in zip(grads, ctx.counts, strict=True)
        ]
        return torch.cat(flat), None, None


def _aliases(whole: Tensor, shapes: Sequence[torch.Size], *, own_counters: bool) -> tuple[Tensor, ...]:
    found, start = [], 0
    for shape in shapes:
        view = whole.narrow(0, start, prod(shape)).view(shape)
        # Without a history neither is a view; ``detach`` shares the counter.
        found.append(view.data if own_counters else view.detach())
        start += prod(shape)
    return tuple(found)


def packed(parts: Sequence[Tensor]) -> Tensor:
    """One 1-D tensor of all values, in the widest of the types: autocast may have made them different."""
    with counted():
        return torch.cat([part.reshape(-1) for part in parts])


def with_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], values: Mapping[Key, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other values at some positions and keywords."""
    return (
        tuple(values.get(place, value) for place, value in enumerate(args)),
        {name: values.get(name, value) for name, value in kwargs.items()},
    )


def item_of(output: Any, place: int) -> Any:
    """What stands in a place of a tuple, list or mapping; None where there is none."""
    items = list(output.values()) if isinstance(output, dict) else output
    return items[place] if isinstance(items, (tuple, list)) and place < len(items) else None


def with_items(output: Any, values: Mapping[int, Any]) -> Any:
    """The tuple, list or mapping with other values in some places; it keeps its type."""
    if isinstance(output, dict):
        for place, name in enumerate(list(output)):
            if place in values:
                output[name] = values[place]
        return output
    items = [values.get(place, value) for place, value in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
