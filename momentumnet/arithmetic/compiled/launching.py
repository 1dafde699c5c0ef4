"""Kernels run on tensors that are known to fit them, with as little on the host as can be.

That is what the engine does; `operators` has those of a step and of packing with checks, behind PyTorch's dispatcher.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.planes import Integers, Place
from momentumnet.errors import MomentumNetError

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
WORDS = {24: fp.INT24, 32: fp.INT32, 64: fp.INT64}
_NO_SKIP = -1
# Fewer elements are not worth waking a second thread for.
_ELEMENTS_PER_THREAD = 16384
# The fields of libraries.Look, and zeros for pieces that there are not.
_LOOK = struct.Struct(f"@{libraries.PIECES}P{libraries.PIECES}q{libraries.PIECES}i{libraries.PIECES}i")
_NO_PIECES = [(0,) * (libraries.PIECES - count) for count in range(libraries.PIECES + 1)]
# Powers of two that float64 holds, the kernels' scale being one.
_EXPONENTS = range(-1022, 1023)


@functools.lru_cache(maxsize=4096)
def plan_of(
    bits: tuple[int, int],
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
    """The constants of a step as the kernels take them; ``bits`` are those of the integers (`arithmetic.planes`)."""
    word = WORDS[bits[0]]
    top = word.store_limit
    if not (1 <= n <= top and 1 <= d <= top and exponent in _EXPONENTS and abs(offset) <= top):
        raise ValueError(f"no digits of {word.dtype}: n={n}, d={d}, offset={offset}, exponent={exponent}")
    most = min(top, 1 << bits[1])
    if not all(1 <= value <= most for value in (previous_bound, bound, next_bound)):
        raise ValueError(f"the store's bounds must be from 1 to {most}, got {previous_bound}, {bound}, {next_bound}")
    if skip is not None and skip not in DTYPES:
        raise ValueError(f"skip must be {names(DTYPES)}, got {skip}")
    codes = (DTYPES[y], _NO_SKIP if skip is None else DTYPES[skip], DTYPES[position])
    bounds = (n, d, previous_bound, bound, next_bound, offset)
    return libraries.Plan(*bounds, exponent, factor, *bits, *codes, ahead)


@functools.lru_cache(maxsize=1024)
def state_plan(
    bits: tuple[int, int], position: torch.dtype = torch.float32, bound: int = 1, exponent: int = 0
) -> libraries.Plan:
    """The constants of a kernel that has no branch: ``bound`` is the store's present one."""
    return plan_of(bits, position, None, position, 1, 1, bound, 1, 1, 0, 1.0, exponent)


@functools.lru_cache(maxsize=1024)
def float_plan(bits: tuple[int, int], dtype: torch.dtype, factor: float, exponent: int) -> libraries.Plan:
    """The constants of a kernel that changes integers into floats of ``dtype``, or floats into integers."""
    return plan_of(bits, dtype, None, dtype, 1, 1, 1, 1, 1, 0, factor, exponent)


@functools.lru_cache(maxsize=1024)
def field_of(width: int, signed: bool, place: Place) -> libraries.Field:
    """The field of integers that lie at ``place``, as the kernels take it."""
    return libraries.Field(width, signed, place)


def names(dtypes: Collection[torch.dtype]) -> str:
    """The dtypes for a message."""
    return " or ".join(map(str, dtypes))


def launch(name: str, constants: ctypes.Structure, x: Tensor, *others: Tensor | None) -> None:
    """Run a kernel; a report among the tensors is zero."""
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in others]
    _launch(name, constants, x.numel(), x, x.data_ptr(), *pointers)


def look(values: Sequence[Tensor]) -> Tensor:
    """0, and the checksum of the bits of a few 1-D tensors of any types, all on one device; see `fingerprint`."""
    none = _NO_PIECES[len(values)]
    # Packed, as a structure whose fields are set one by one takes longer than the launch.
    packed = _LOOK.pack(
        *[value.data_ptr() for value in values], *none, *[value.stride(0) for value in values], *none,
        *[value.numel() for value in values], *none, *[value.element_size() for value in values], *none,
    )  # fmt: skip
    # Of many, several blocks of a GPU add to it.
    made = torch.zeros if sum(value.numel() for value in values) > libraries.LOOK_ALONE else torch.empty
    report = made(2, dtype=torch.int64, device=values[0].device)
    _launch("mn_look", libraries.Look.from_buffer_copy(packed), len(values), report, report.data_ptr())
    return report


def _launch(name: str, constants: ctypes.Structure, size: int, beside: Tensor, *pointers: int) -> None:
    """Run a kernel on the device of the tensor ``beside``."""
    if beside.is_cuda:
        where = beside.device.index
        found = libraries.on_cuda(where)
        # The public way, torch.cuda.current_stream, makes an object of it, which takes longer than the launch.
        stream = torch._C._cuda_getCurrentRawStream(where)
    else:
        found, stream = libraries.cpu(), 0
        where = 1 if size < 2 * _ELEMENTS_PER_THREAD else min(torch.get_num_threads(), size // _ELEMENTS_PER_THREAD)
    if found.library is None:
        raise MomentumNetError(f"there are no native kernels for {beside.device.type} tensors: {found.reason}")
    status = getattr(found.library, name)(constants, size, where, stream, *pointers)
    if status:
        raise MomentumNetError(f"{name} failed on {beside.device}: {found.library.mn_error(status).decode()}")


def launch_on(name: str, constants: ctypes.Structure, ints: Integers, *others: Tensor | None) -> None:
    """Run a kernel on x, v and s; where they are joint, there is no third tensor."""
    launch(name, constants, *(*ints.tensors, None)[:3], *others)
