"""A copy of a network to try things out on, and what it computes on the example inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import PruningError
from momentumnet.prune.masking.masks import masks_of, remove_masks
from momentumnet.streams.blocks.converted import is_converted
from momentumnet.streams.blocks.nested import copied, tensors_in
from momentumnet.streams.tracing.guard import eager_functions, fresh_dropout_outputs, left_as_found
from momentumnet.streams.tracing.trace import call_with_example

# What a network raises whose layers do not fit together any more: shapes, attributes that are gone, its own checks.
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ArithmeticError)
_NOISE = 0.1


def unmasked_copy(model: nn.Module) -> nn.Module:
    """A copy with plain parameters in the place of masked ones, zeros where they are masked.

    Raises:
        PruningError: the model is converted.
    """
    if is_converted(model):
        raise PruningError(
            "the model holds converted blocks, whose size belongs to their stream; call momentumnet.revert on it "
            "first, and convert what pruning leaves"
        )
    own = copy.deepcopy(model)
    if masks_of(own):
        remove_masks(own)
    return own


def perturbed_copy(model: nn.Module) -> nn.Module:
    """An unmasked copy with all parameters and running statistics moved a little.

    What is zero or one only at the beginning (biases, last layers, running statistics) is then no more, so that what
    holds for the copy holds after training too.
    """
    own = unmasked_copy(model)
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.is_floating_point():
                fan_in = math.prod(parameter.shape[1:])
                parameter.add_(noise(parameter), alpha=_NOISE / math.sqrt(max(1, fan_in)))
        for module in own.modules():
            mean, variance = module._buffers.get("running_mean"), module._buffers.get("running_var")
            if mean is not None and variance is not None:
                mean.add_(noise(mean), alpha=_NOISE)
                variance.mul_(1 + _NOISE * noise(variance).abs())
    return own


def outputs_of(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """The floating-point tensors that the model returns in eval mode; it is left as it was found.

    Each call draws the same random numbers. Transformer layers keep off their fused path, which calls no modules.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(left_as_found(model, example_inputs))
        stack.enter_context(eager_functions())
        stack.enter_context(fresh_dropout_outputs())
        output = call_with_example(model, copied(example_inputs))
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def misfit(model: nn.Module, example_inputs: Any, expected: Sequence[Tensor]) -> str | None:
    """How a network that was made smaller differs from ``expected`` by more than rounding; None where it does not.

    Rounding may come to the power 2/3 of the dtype's precision (2e-5 in float32), as a share of the largest value.
    """
    try:
        found = outputs_of(model, example_inputs)
    except _MISFITS as error:
        return f"it raises {type(error).__name__}: {error}"
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (found, expected)]
    if shapes[0] != shapes[1]:
        return f"its outputs have the shapes {shapes[0]} instead of {shapes[1]}"
    for one, other in zip(found, expected, strict=True):
        if one.numel() == 0:
            continue
        largest, distance = float(other.abs().max()), float((one - other).abs().max())
        if not distance <= torch.finfo(other.dtype).eps ** (2 / 3) * largest:
            return f"its outputs differ by up to {distance:.2g}, the largest of them being {largest:.2g}"
    return None


@contextmanager
def parameters_kept(layers: list[nn.Module]) -> Iterator[None]:
    """Puts the parameters, buffers and attributes of layers back at the end."""
    held = [(layer, dict(layer.__dict__), dict(layer._parameters), dict(layer._buffers)) for layer in layers]
    values = [
        (parameter, parameter.detach().clone()) for layer in layers for parameter in layer.parameters(recurse=False)
    ]
    try:
        yield
    finally:
        for layer, attributes, parameters, buffers in held:
            layer.__dict__.update(attributes)
            layer._parameters.update(parameters)
            layer._buffers.update(buffers)
        for parameter, value in values:
            parameter.data.copy_(value)
