"""Which implementation of the momentum step serves a device: the native kernels, or the plain operations."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.compiled.launching import launch, plan_of, state_plan
from momentumnet.arithmetic.momentum_step import Integers, Move, Scale
from momentumnet.arithmetic.packing import Codec, Field, words_for
from momentumnet.arithmetic.reports import is_hollow


class MomentumStep(Codec, Protocol):
    """The operations of `arithmetic.momentum_step`, which documents them; implementations agree to the bit."""

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None: ...

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None: ...

    def undo(self, ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None: ...

    def checksum(self, ints: Integers, report: Tensor) -> None: ...

    def write_position(self, x: Tensor, scale: Scale, position: Tensor) -> None: ...


class NativeStep:
    """The compiled kernels: one pass over memory for each operation.

    The state's tensors fit them by construction. So they are launched directly, not as ``torch.ops.momentumnet``: on a
    small stream the dispatcher and the checks would take longer than the kernel.
    """

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
        spilled = ints.x.new_empty(ints.x.shape, dtype=torch.uint8) if move.digits.spills else None
        plan = move_plan(move, position.dtype, ahead=False)
        launch("mn_step", plan, ints.x, ints.v, ints.s, move.branch.y, position, spilled, report)
        return spilled

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
        dtype = torch.float32 if position is None else position.dtype
        plan = state_plan(ints.x.dtype, dtype, bound, scale.exponent)
        launch("mn_rewind", plan, ints.x, ints.v, ints.s, position)

    def undo(self, ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None:
        plan = move_plan(move, torch.float32, ahead=ahead)
        launch("mn_undo", plan, ints.x, ints.v, ints.s, move.branch.y, None, spilled, report)

    def checksum(self, ints: Integers, report: Tensor) -> None:
        launch("mn_checksum", state_plan(ints.x.dtype), ints.x, ints.v, ints.s, report)

    def write_position(self, x: Tensor, scale: Scale, position: Tensor) -> None:
        momentum_step.write_position(x, scale, position)

    def pack(self, value: Tensor, field: Field) -> Tensor:
        words = value.new_empty(words_for(value.numel(), field.width))
        launch("mn_pack", libraries.Field(field.width, field.signed), value, words)
        return words

    def unpack(self, words: Tensor, size: int, field: Field) -> Tensor:
        value = words.new_empty(size)
        launch("mn_unpack", libraries.Field(field.width, field.signed), value, words)
        return value


def move_plan(move: Move, position: torch.dtype, *, ahead: bool) -> libraries.Plan:
    """The constants of a step or its undo; ``position`` is the type in which the next input is written."""
    branch, scale = move.branch, move.scale
    # The kernels find the block's input in the state themselves; they need its type alone.
    skip = None if branch.x is None else branch.x.dtype
    bounds = move.digits.constants
    return plan_of(scale.word.dtype, branch.y.dtype, skip, position, *bounds, scale.factor, scale.exponent, ahead)


_NATIVE = NativeStep()


def for_device(device: torch.device) -> MomentumStep:
    """The fastest implementation there is for tensors on ``device``."""
    return momentum_step if libraries.of(device).library is None else _NATIVE


def for_tensor(tensor: Tensor) -> MomentumStep:
    """The fastest implementation for tensors like this one: a fake or meta tensor has no memory for a kernel."""
    return momentum_step if is_hollow(tensor) else for_device(tensor.device)
