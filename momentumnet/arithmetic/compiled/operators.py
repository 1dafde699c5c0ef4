"""``torch.ops.momentumnet``: kernels of a step and of packing as PyTorch operators, with fake kernels for tracing.

What they compute, and what the tensors hold, is described in `typed_operators` beside this file, their typed face. They
write to their arguments and return nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from momentumnet.arithmetic.compiled.launching import DTYPES, field_of, launch, launch_on, names, plan_of, state_plan
from momentumnet.arithmetic.packing import words_for
from momentumnet.arithmetic.planes import Integers, Place

_BYTES = (torch.uint8,)
_INTEGERS = (torch.int32, torch.int64)


def _check(
    x: Tensor,
    *others: tuple[str, Tensor | None, Collection[torch.dtype]],
    words: int = 0,
    integers: Collection[torch.dtype] = _INTEGERS,
) -> None:
    """Every tensor is of x's length, on its device, without gaps and of one of its types.

    A report has two elements, packed words are ``words`` many. ``y`` may have gaps: it is copied then.
    """
    device, lengths = x.device, {"report": 2, "words": words}
    for name, tensor, dtypes in (("x", x, integers), *others):
        if tensor is None:
            continue
        expected = lengths.get(name, x.numel())
        if tensor.dim() != 1 or tensor.numel() != expected:
            raise ValueError(f"{name} must have shape ({expected},), got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            beside = "" if tensor is x else f" beside x of {x.dtype}"
            raise ValueError(f"{name} must be {names(dtypes)}{beside}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, x on {device}")
        if not tensor.is_contiguous() and name != "y":
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def _state(x: Tensor, v: Tensor, s: Tensor | None) -> tuple[tuple[str, Tensor | None, Collection[torch.dtype]], ...]:
    """v and s as they are to be beside x. Without s, x and v are the words of joint integers."""
    if s is None and x.dtype == torch.int64:
        raise ValueError(
            "s must be torch.int64 beside x of torch.int64, got none; words of torch.int32 can hold it, too"
        )
    stores = (x.dtype, torch.int16) if x.dtype == torch.int32 else (x.dtype,)
    return ("v", v, (x.dtype,)), ("s", s, stores)


def _step_check(
    x: Tensor,
    v: Tensor,
    s: Tensor | None,
    position: Tensor | None,
    spilled: Tensor | None,
    report: Tensor,
    y: Tensor,
    skip: torch.dtype | None,
    *constants: float,
) -> None:
    _check(
        x,
        *_state(x, v, s),
        ("position", position, DTYPES),
        ("spilled", spilled, _BYTES),
        ("report", report, (x.dtype,)),
        ("y", y, DTYPES),
    )


def _step(*arguments: Any, name: str = "mn_step") -> None:
    _step_check(*arguments)
    x, v, s, position, spilled, report, y, skip, *constants = arguments
    ints = Integers(x, v, s)
    plan = plan_of(ints.bits, y.dtype, skip, torch.float32 if position is None else position.dtype, *constants)
    launch_on(name, plan, ints, y.contiguous(), position, spilled, report.zero_())


def _rewind_check(x: Tensor, v: Tensor, s: Tensor | None, position: Tensor | None, bound: int, exponent: int) -> None:
    _check(x, *_state(x, v, s), ("position", position, DTYPES))


def _rewind(x: Tensor, v: Tensor, s: Tensor | None, position: Tensor | None, bound: int, exponent: int) -> None:
    _rewind_check(x, v, s, position, bound, exponent)
    ints, dtype = Integers(x, v, s), torch.float32 if position is None else position.dtype
    launch_on("mn_rewind", state_plan(ints.bits, dtype, bound, exponent), ints, position)


def _checksum_check(x: Tensor, v: Tensor, s: Tensor | None, report: Tensor) -> None:
    _check(x, *_state(x, v, s), ("report", report, (x.dtype,)))


def _checksum(x: Tensor, v: Tensor, s: Tensor | None, report: Tensor) -> None:
    _checksum_check(x, v, s, report)
    ints = Integers(x, v, s)
    launch_on("mn_checksum", state_plan(ints.bits), ints, report.zero_())


def _packing_check(
    x: Tensor, second: Tensor | None, words: Tensor, width: int, place: int, signed: bool = False
) -> None:
    if not 1 <= width <= 32:
        raise ValueError(f"width must be from 1 to 32, got {width}")
    if place not in tuple(Place):
        raise ValueError(f"place must be from 0 to {max(Place)}, got {place}")
    dtype = torch.int16 if place == Place.SHORT_STORE else torch.int32
    if x.dtype != dtype:
        raise ValueError(f"only {dtype} is packed from place {place}, got {x.dtype}")
    if (second is not None) != (place == Place.JOINT_V):
        raise ValueError(f"a joint v alone lies in two tensors, got {'one' if second is None else 'two'}")
    others = (("second", second, (torch.int32,)), ("words", words, (torch.int32,)))
    _check(x, *others, words=words_for(x.numel(), width), integers=(dtype,))


def _packing(
    x: Tensor, second: Tensor | None, words: Tensor, width: int, place: int, signed: bool = False, *, name: str
) -> None:
    _packing_check(x, second, words, width, place)
    launch(name, field_of(width, signed, Place(place)), x, second, words)


_CONSTANTS = (
    "Tensor y, ScalarType? skip, int n, int d, int previous_bound, int bound, int next_bound, int offset, "
    "float factor, int exponent"
)
_STATE = "Tensor(a!) x, Tensor(b!) v, Tensor(c!)? s"
_LIBRARY = torch.library.Library("momentumnet", "DEF")


def _define(name: str, arguments: str, kernel: Callable[..., None], check: Callable[..., None]) -> Callable[..., None]:
    _LIBRARY.define(f"{name}({arguments}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"momentumnet::{name}", check, lib=_LIBRARY)
    operator: Callable[..., None] = getattr(torch.ops.momentumnet, name).default
    return operator


STEP = _define(
    "step",
    f"{_STATE}, Tensor(d!) position, Tensor(e!)? spilled, Tensor(f!) report, {_CONSTANTS}",
    _step,
    _step_check,
)
UNDO = _define(
    "undo",
    f"{_STATE}, Tensor(d!)? position, Tensor? spilled, Tensor(e!) report, {_CONSTANTS}, bool ahead",
    functools.partial(_step, name="mn_undo"),
    _step_check,
)
REWIND = _define(
    "rewind", "Tensor(a!) x, Tensor v, Tensor? s, Tensor(b!)? position, int bound, int exponent", _rewind, _rewind_check
)
CHECKSUM = _define("checksum", "Tensor x, Tensor v, Tensor? s, Tensor(a!) report", _checksum, _checksum_check)
PACK = _define(
    "pack",
    "Tensor x, Tensor? second, Tensor(a!) words, int width, int place",
    functools.partial(_packing, name="mn_pack"),
    _packing_check,
)
UNPACK = _define(
    "unpack",
    "Tensor(a!) x, Tensor(b!)? second, Tensor words, int width, int place, bool signed",
    functools.partial(_packing, name="mn_unpack"),
    _packing_check,
)
