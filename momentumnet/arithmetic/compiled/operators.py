"""``torch.ops.momentumnet``: the compiled kernels as PyTorch operators, with fake kernels for tracing.

What they compute, and what the tensors hold, is described in `typed_operators` beside this file, their typed face. They
write to their arguments and return nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.packing import words_for
from momentumnet.errors import MomentumNetError

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_NO_SKIP = -1
_WORDS = {torch.int32: fp.INT32, torch.int64: fp.INT64}
_BYTES = (torch.uint8,)
# Fewer elements are not worth waking a second thread for.
_ELEMENTS_PER_THREAD = 16384
# Powers of two that float64 holds, the kernels' scale being one.
_EXPONENTS = range(-1022, 1023)


@functools.lru_cache(maxsize=4096)
def plan_of(
    word: torch.dtype,
    y: torch.dtype,
    skip: torch.dtype | None,
    position: torch.dtype,
    n: int,
    d: int,
    previous_bound: int,
    bound: int,
    next_bound: int,
    offset: int,
    factor: float,
    exponent: int,
    ahead: bool = False,
) -> libraries.Plan:
    """The constants of a step as the kernels take them."""
    top = _WORDS[word].store_limit
    if not (1 <= n <= top and 1 <= d <= top and exponent in _EXPONENTS and abs(offset) <= top):
        raise ValueError(f"no digits of {word}: n={n}, d={d}, offset={offset}, exponent={exponent}")
    if not all(1 <= value <= top for value in (previous_bound, bound, next_bound)):
        raise ValueError(f"the store's bounds must be from 1 to {top}, got {previous_bound}, {bound}, {next_bound}")
    if skip is not None and skip not in _DTYPES:
        raise ValueError(f"skip must be {_names(_DTYPES)}, got {skip}")
    codes = (_DTYPES[y], _NO_SKIP if skip is None else _DTYPES[skip], _DTYPES[position])
    bounds = (n, d, previous_bound, bound, next_bound, offset)
    return libraries.Plan(*bounds, exponent, factor, _WORDS[word].bits, *codes, ahead, 0)


def _names(dtypes: Collection[torch.dtype]) -> str:
    return " or ".join(map(str, dtypes))


def _check(x: Tensor, *others: tuple[str, Tensor | None, Collection[torch.dtype]], words: int = 0) -> None:
    """Every tensor is of x's length, on its device, without gaps and of one of its types.

    A report has two elements, packed words are ``words`` many. ``y`` may have gaps: it is copied then.
    """
    device, lengths = x.device, {"report": 2, "words": words}
    for name, tensor, dtypes in (("x", x, _WORDS), *others):
        if tensor is None:
            continue
        expected = lengths.get(name, x.numel())
        if tensor.dim() != 1 or tensor.numel() != expected:
            raise ValueError(f"{name} must have shape ({expected},), got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            beside = "" if tensor is x else f" beside x of {x.dtype}"
            raise ValueError(f"{name} must be {_names(dtypes)}{beside}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, x on {device}")
        if not tensor.is_contiguous() and name != "y":
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def _kernels_for(x: Tensor) -> tuple[ctypes.CDLL, int, int]:
    """The library, and what tells it where to work: the number of threads, or the device and its stream."""
    if x.is_cuda:
        found = libraries.on_cuda(x.device.index)
        where, stream = x.device.index, torch.cuda.current_stream(x.device).cuda_stream
    else:
        found = libraries.cpu()
        size = x.numel()
        where = 1 if size < 2 * _ELEMENTS_PER_THREAD else min(torch.get_num_threads(), size // _ELEMENTS_PER_THREAD)
        stream = 0
    if found.library is None:
        raise MomentumNetError(f"there are no native kernels for {x.device.type} tensors: {found.reason}")
    return found.library, where, stream


def launch(name: str, constants: ctypes.Structure, x: Tensor, *others: Tensor | None) -> None:
    """Run a kernel on tensors that are known to fit it: what the engine does, without the dispatcher's time."""
    library, where, stream = _kernels_for(x)
    pointers = (0 if tensor is None else tensor.data_ptr() for tensor in others)
    status = getattr(library, name)(constants, x.numel(), where, stream, x.data_ptr(), *pointers)
    if status:
        raise MomentumNetError(f"{name} failed on {x.device}: {library.mn_error(status).decode()}")


def _step_check(
    x: Tensor,
    v: Tensor,
    s: Tensor,
    position: Tensor | None,
    spilled: Tensor | None,
    report: Tensor,
    y: Tensor,
    skip: torch.dtype | None,
    *constants: float,
) -> None:
    word = (x.dtype,)
    _check(
        x,
        ("v", v, word),
        ("s", s, word),
        ("position", position, _DTYPES),
        ("spilled", spilled, _BYTES),
        ("report", report, word),
        ("y", y, _DTYPES),
    )


def _step(*arguments: Any, name: str = "mn_step") -> None:
    _step_check(*arguments)
    x, v, s, position, spilled, report, y, skip, *constants = arguments
    plan = plan_of(x.dtype, y.dtype, skip, torch.float32 if position is None else position.dtype, *constants)
    launch(name, plan, x, v, s, y.contiguous(), position, spilled, report)


def _rewind_check(x: Tensor, v: Tensor, s: Tensor, position: Tensor | None, bound: int, exponent: int) -> None:
    _check(x, ("v", v, (x.dtype,)), ("s", s, (x.dtype,)), ("position", position, _DTYPES))


def _rewind(x: Tensor, v: Tensor, s: Tensor, position: Tensor | None, bound: int, exponent: int) -> None:
    _rewind_check(x, v, s, position, bound, exponent)
    dtype = torch.float32 if position is None else position.dtype
    plan = plan_of(x.dtype, dtype, None, dtype, 1, 1, bound, 1, 1, 0, 1.0, exponent)
    launch("mn_rewind", plan, x, v, s, position)


def _checksum_check(x: Tensor, v: Tensor, s: Tensor, report: Tensor) -> None:
    word = (x.dtype,)
    _check(x, ("v", v, word), ("s", s, word), ("report", report, word))


def _checksum(x: Tensor, v: Tensor, s: Tensor, report: Tensor) -> None:
    _checksum_check(x, v, s, report)
    plan = plan_of(x.dtype, torch.float32, None, torch.float32, 1, 1, 1, 1, 1, 0, 1.0, 0)
    launch("mn_checksum", plan, x, v, s, report)


def _packing_check(x: Tensor, words: Tensor, width: int, signed: bool = False) -> None:
    if not 1 <= width <= 32:
        raise ValueError(f"width must be from 1 to 32, got {width}")
    if x.dtype != torch.int32:
        raise ValueError(f"only torch.int32 is packed, got {x.dtype}")
    _check(x, ("words", words, (x.dtype,)), words=words_for(x.numel(), width))


def _packing(x: Tensor, words: Tensor, width: int, signed: bool = False, *, name: str) -> None:
    _packing_check(x, words, width)
    launch(name, libraries.Field(width, signed), x, words)


_CONSTANTS = (
    "Tensor y, ScalarType? skip, int n, int d, int previous_bound, int bound, int next_bound, int offset, "
    "float factor, int exponent"
)
_STATE = "Tensor(a!) x, Tensor(b!) v, Tensor(c!) s"
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
    "rewind", "Tensor(a!) x, Tensor v, Tensor s, Tensor(b!)? position, int bound, int exponent", _rewind, _rewind_check
)
CHECKSUM = _define("checksum", "Tensor x, Tensor v, Tensor s, Tensor(a!) report", _checksum, _checksum_check)
PACK = _define(
    "pack", "Tensor x, Tensor(a!) words, int width", functools.partial(_packing, name="mn_pack"), _packing_check
)
UNPACK = _define(
    "unpack",
    "Tensor(a!) x, Tensor words, int width, bool signed",
    functools.partial(_packing, name="mn_unpack"),
    _packing_check,
)
