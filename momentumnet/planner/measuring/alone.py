"""A part of a step by itself: leaves in the place of what comes to it, and gradients in that of what stands behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.nested import tensors_in


def leaf_of(tensor: Tensor) -> Tensor:
    """A tensor of the same values, from which a graph begins."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def without_history() -> saved_tensors_hooks:
    """Inside, autograd saves tensors without the graph that they came from."""
    return saved_tensors_hooks(_without_history, _as_it_is)


def _without_history(tensor: Tensor) -> Tensor:
    return tensor.detach()  # with its history it would keep itself alive


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Handed(torch.autograd.Function):
    """Hands gradients to an output, as what comes behind a unit does: nobody else holds them."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        ctx.like = [torch.empty_like(leaf, device="meta", memory_format=_format_of(leaf)) for leaf in outputs]
        ctx.devices = [leaf.device for leaf in outputs]
        return outputs[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        places = zip(ctx.like, ctx.devices, strict=True)
        return tuple(torch.ones_like(like, device=device) for like, device in places)


def check_not_nested(tensors: Iterable[Tensor]) -> None:
    """Refuse nested tensors, of which no sizes can be told, nor a gradient be made.

    Raises:
        ConversionError: one is nested.
    """
    if any(tensor.is_nested for tensor in tensors):
        raise ConversionError(
            "a part of the network takes or returns a nested tensor, so that it cannot be measured by itself, and no "
            "plan be made; convert without a budget, or pad it outside of the parts"
        )


def _format_of(output: Tensor) -> torch.memory_format:
    """How the gradient of an output lies in memory as a rule: channels last if it does, else in order.

    Of one that is transposed, too (what an attention layer returns): it comes from a norm or a linear layer.
    """
    if output.layout != torch.strided:
        return torch.preserve_format
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(output.dim())
    return last if last is not None and output.is_contiguous(memory_format=last) else torch.contiguous_format


class _Waiting(_Handed):
    """The same of gradients that wait for further ones: as views, into which autograd adds none.

    Those of linear layers are views. Others are added to in place, but to one of both or the other makes no difference.
    """

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient[...] for gradient in _Handed.backward(ctx, grad))


def waiting(parameters: Sequence[Tensor]) -> Tensor:
    """Where gradients of parameters begin that wait for those of a part."""
    found: Tensor = _Waiting.apply(*parameters)
    return found


def handed(output: Any) -> Tensor | None:
    """Where the gradients of an output begin; None where there are none.

    Raises:
        ConversionError: it holds nested tensors.
    """
    outputs = [leaf for leaf in tensors_in([output]) if leaf.requires_grad]
    check_not_nested(outputs)
    return _Handed.apply(*outputs) if outputs else None


def differentiate(total: Tensor | None, leaves: Sequence[Tensor]) -> Any:
    """The gradients of the leaves, which nobody adds to any."""
    return torch.autograd.grad(total, leaves, allow_unused=True) if total is not None and leaves else None


def gradient_bytes(gradient: Tensor | None) -> int:
    """Bytes of a gradient; of a sparse one of its values, as its indices are those that the forward was given."""
    if gradient is None:
        return 0
    values = gradient._values() if gradient.is_sparse else gradient
    return values.numel() * values.element_size()


@contextmanager
def gradients_there(parameters: Sequence[Tensor]) -> Iterator[Callable[[Tensor | None, Sequence[Tensor]], Any]]:
    """Gets a backward that adds to gradients which parameters have meanwhile, as one behind another does."""
    before = [parameter.grad for parameter in parameters]

    def added(total: Tensor | None, leaves: Sequence[Tensor]) -> None:
        if total is not None and leaves:
            torch.autograd.backward(total, inputs=leaves)

    try:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        yield added
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


@contextmanager
def gradients_put_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients are none of those that a backward of the network's own adds meanwhile, as reversible ones do."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    without_gradients(parameter for parameter, _ in before)
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def without_gradients(parameters: Iterable[Tensor]) -> None:
    """They have none any more."""
    for parameter in parameters:
        parameter.grad = None
