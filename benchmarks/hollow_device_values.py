"""What the engine reads of tensors on the device of hollow_device.py, whose kernels compute nothing: made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from momentumnet.arithmetic.reports import Reading
from momentumnet.core.state.exact_state import ExactState

# Of integers that are read, in units of a state's scale: it fits all states.
MAGNITUDE = 1 << 13


@contextmanager
def made_up_values() -> Iterator[None]:
    """What the engine reads of tensors on the device is what it reads where all is well; they hold no values.

    Nothing differs from what it is compared with, floats are 1, no value outgrows its scale, and integers at rest are
    as wide as the largest value for which their scale was chosen. The read itself takes place, and is counted.
    """
    pack, equal = ExactState.pack, torch.equal

    def packed(state: ExactState, extremes: Sequence[float] | None = None) -> None:
        most = 1 << state.range.bits
        pack(state, (-most, most - 1) * 2 if state.report.is_cuda else extremes)

    def compared(one: Tensor, other: Tensor) -> bool:
        return equal(one, other) or one.is_cuda

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Reading, "values", _made_up_reading(Reading.values)))
        for name, value in {
            "__float__": _float_of,
            "__int__": _integer_of,
            "__bool__": _no,
        }.items():
            patches.enter_context(mock.patch.object(Tensor, name, _made_up(getattr(Tensor, name), value)))
        patches.enter_context(mock.patch.object(ExactState, "pack", packed))
        patches.enter_context(mock.patch.object(torch, "equal", compared))
        yield


def _made_up(read: Callable[[Tensor], Any], value: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Reads, and returns something else where the tensor lies on the device."""

    def reads(tensor: Tensor) -> Any:
        found = read(tensor)
        return value(tensor) if tensor.is_cuda else found

    return reads


def _made_up_reading(values: Callable[[Reading], Any]) -> Callable[[Reading], Any]:
    """The same of what is on its way to the host."""

    def reads(reading: Reading) -> Any:
        found = values(reading)
        return tree_map(_number_like, found) if reading.is_of_a_device else found

    return reads


def _number_like(number: float) -> float:
    """What a number of this kind would be; a boolean is an integer to Python."""
    return {bool: False, int: MAGNITUDE, float: 1.0}[type(number)]


def _float_of(_: Tensor) -> float:
    return 1.0


def _integer_of(_: Tensor) -> int:
    return MAGNITUDE


def _no(_: Tensor) -> bool:
    return False
