"""Fixup's scalar biases and multipliers, as parameters of the layers that they stand beside.

The scalars are parameters of shape (1,) of the module itself, applied by forward hooks that are functions of this
module: the network keeps its classes and its names, and can be copied, pickled and converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from momentumnet.streams.blocks.nested import floating

INPUT_BIAS = "fixup_input_bias"
MULTIPLIER = "fixup_multiplier"
OUTPUT_BIAS = "fixup_output_bias"
_AT_START = {INPUT_BIAS: 0.0, MULTIPLIER: 1.0, OUTPUT_BIAS: 0.0}


def add_scalar(module: nn.Module, name: str, like: torch.Tensor) -> None:
    """Give the module the scalar ``name`` at its initial value, on the device and of the dtype of ``like``.

    A module that has it already (the initialisation runs a second time) has its value set back.
    """
    value = torch.full((1,), _AT_START[name], dtype=like.dtype, device=like.device)
    existing = module._parameters.get(name)
    if existing is not None:
        with torch.no_grad():
            existing.copy_(value)
        return
    module.register_parameter(name, nn.Parameter(value))
    if name == INPUT_BIAS:
        module.register_forward_pre_hook(_shift_input, with_kwargs=True)
    elif _change_output not in module._forward_hooks.values():
        module.register_forward_hook(_change_output)


def _shift_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add the bias to the first floating-point tensor, wherever it stands: in attention as query, key and value."""
    first = next((value for value in (*args, *kwargs.values()) if floating(value)), None)
    if first is None:
        return args, kwargs
    shifted = first + module._parameters[INPUT_BIAS]
    args = tuple(shifted if value is first else value for value in args)
    return args, {name: shifted if value is first else value for name, value in kwargs.items()}


def _change_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Multiply, then add; of a tuple (attention and its weights) the first element."""
    if isinstance(output, tuple):
        return (_change_output(module, args, output[0]), *output[1:])
    multiplier, bias = module._parameters.get(MULTIPLIER), module._parameters.get(OUTPUT_BIAS)
    if multiplier is not None:
        output = output * multiplier
    return output if bias is None else output + bias
