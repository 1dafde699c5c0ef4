"""Kernels run on tensors that are known to fit them, with as little on the host as can be.

That is what the engine does; `operators` has the same kernels with checks, behind PyTorch's dispatcher.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import libraries
from momentumnet.errors import MomentumNetError

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
WORDS = {torch.int32: fp.INT32, torch.int64: fp.INT64}
_NO_SKIP = -1
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
    top = WORDS[word].store_limit
    if not (1 <= n <= top and 1 <= d <= top and exponent in _EXPONENTS and abs(offset) <= top):
        raise ValueError(f"no digits of {word}: n={n}, d={d}, offset={offset}, exponent={exponent}")
    if not all(1 <= value <= top for value in (previous_bound, bound, next_bound)):
        raise ValueError(f"the store's bounds must be from 1 to {top}, got {previous_bound}, {bound}, {next_bound}")
    if skip is not None and skip not in DTYPES:
        raise ValueError(f"skip must be {names(DTYPES)}, got {skip}")
    codes = (DTYPES[y], _NO_SKIP if skip is None else DTYPES[skip], DTYPES[position])
    bounds = (n, d, previous_bound, bound, next_bound, offset)
    return libraries.Plan(*bounds, exponent, factor, WORDS[word].bits, *codes, ahead, 0)


@functools.lru_cache(maxsize=1024)
def state_plan(
    word: torch.dtype, position: torch.dtype = torch.float32, bound: int = 1, exponent: int = 0
) -> libraries.Plan:
    """The constants of a kernel that has no branch: ``bound`` is the store's present one."""
    return plan_of(word, position, None, position, 1, 1, bound, 1, 1, 0, 1.0, exponent)


def names(dtypes: Collection[torch.dtype]) -> str:
    """The dtypes for a message."""
    return " or ".join(map(str, dtypes))


def launch(name: str, constants: ctypes.Structure, x: Tensor, *others: Tensor | None) -> None:
    """Run a kernel; a report among the tensors is zero."""
    size = x.numel()
    if x.is_cuda:
        where = x.device.index
        found = libraries.on_cuda(where)
        # The public way, torch.cuda.current_stream, makes an object of it, which takes longer than the launch.
        stream = torch._C._cuda_getCurrentRawStream(where)
    else:
        found, stream = libraries.cpu(), 0
        where = 1 if size < 2 * _ELEMENTS_PER_THREAD else min(torch.get_num_threads(), size // _ELEMENTS_PER_THREAD)
    if found.library is None:
        raise MomentumNetError(f"there are no native kernels for {x.device.type} tensors: {found.reason}")
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in others]
    status = getattr(found.library, name)(constants, size, where, stream, x.data_ptr(), *pointers)
    if status:
        raise MomentumNetError(f"{name} failed on {x.device}: {found.library.mn_error(status).decode()}")
