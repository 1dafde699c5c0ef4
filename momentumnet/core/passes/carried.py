"""Which tensors a stream can carry, and what to do about the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from momentumnet.core.scaling.resolution import TYPICAL_BITS
from momentumnet.core.tensors.inference import gradients_on
from momentumnet.core.tensors.transforms import class_of

NESTED = "a tensor inside a list or mapping cannot carry a stream"


def refusal(x: Tensor) -> str | None:
    """Why a stream cannot carry ``x``, and the cure; None if it can. Without gradients, what PyTorch adds will do."""
    if x.is_complex():
        return f"it is complex ({x.dtype}); let the blocks pass torch.view_as_real(z) along"
    if x.is_quantized:
        return "it is quantised, which has no gradient; dequantise it in front of the stream"
    if not gradients_on():
        return None
    if x.is_floating_point() and x.dtype not in TYPICAL_BITS:
        return f"it is of {x.dtype}, too coarse for sums; let the blocks pass bfloat16 along, and cast inside of them"
    if x.layout != torch.strided and not x.is_nested:
        return f"its layout is {x.layout}; make it dense in front of the stream (to_dense)"
    return None


def refusal_of_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Mapping[Any, Tensor]) -> str:
    """Why none of a block's arguments can carry a stream."""
    fx = sys.modules.get("torch.fx")
    if fx is not None and any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values())):
        return "torch.fx.symbolic_trace calls it without values; use torch.export, or trace momentumnet.revert(model)"
    return next(filter(None, map(refusal, tensors.values())), NESTED)


def refusal_of_output(y: Tensor, x: Tensor) -> str | None:
    """Why a block that takes ``x``, which a stream can carry, cannot return ``y``."""
    if y.device != x.device:  # a kernel would take its address for one on its own device
        return (
            f"it lies on {y.device}, the block's input on {x.device}, and a stream is carried on one device; convert "
            "with example inputs while the blocks are where they will be trained, which show where streams end"
        )
    if gradients_on() and y.layout != x.layout:
        return f"its layout is {y.layout}, that of the block's input {x.layout}"
    has_memory = isinstance(y, FakeTensor) or type(y).__torch_dispatch__ is Tensor.__torch_dispatch__
    if class_of(x) is None and not has_memory:
        return f"it is {class_of(y)}, but the block's input a plain one; return its plain value (to_local, wait)"
    return refusal(y)


def described(x: Tensor) -> str:
    """The tensor for a message; a nested one cannot be asked for its shape."""
    return "a nested tensor" if x.is_nested else f"a tensor of shape {tuple(x.shape)}, {x.dtype}"


def same_shape(first: Tensor, second: Tensor) -> bool:
    """Whether the shapes agree. While torch.jit traces they would be tensors, and it warn that they are compared."""
    if first.is_nested or second.is_nested:  # has no shape to compare
        return first.is_nested and second.is_nested
    internals: Any = torch._C  # some of it has no types
    state = internals._get_tracing_state()
    if state is None:
        return first.shape == second.shape
    internals._set_tracing_state(None)
    try:
        return first.shape == second.shape
    finally:
        internals._set_tracing_state(state)
