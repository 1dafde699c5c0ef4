"""Which implementation of the momentum step serves a device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from momentumnet.core import momentum_step
from momentumnet.core.fixed_point import Digits
from momentumnet.core.momentum_step import Branch, Integers, Scale


class Kernels(Protocol):
    """The operations of `momentumnet.core.momentum_step`, which documents them; native ones are equal to the bit."""

    def step(
        self, ints: Integers, branch: Branch, digits: Digits, scale: Scale, position: Tensor
    ) -> tuple[bool, Tensor | None, int | None]: ...

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None: ...

    def undo(
        self,
        ints: Integers,
        branch: Branch,
        digits: Digits,
        scale: Scale,
        spilled: Tensor | None,
        *,
        ahead: bool,
    ) -> int: ...

    def checksum_of(self, ints: Integers) -> int: ...

    def write_position(self, x: Tensor, scale: Scale, position: Tensor) -> None: ...


def for_device(device: torch.device) -> Kernels:
    """The fastest implementation there is."""
    return momentum_step
