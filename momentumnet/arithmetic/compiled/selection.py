"""Which implementation of the momentum step serves a device: the native kernels, or the plain operations."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.compiled.launching import field_of, launch, launch_on, plan_of, state_plan
from momentumnet.arithmetic.momentum_step import Move, Scale
from momentumnet.arithmetic.packing import Codec, Field, words_for
from momentumnet.arithmetic.planes import Integers, Plane
from momentumnet.arithmetic.reports import is_hollow


class MomentumStep(Codec, Protocol):
    """The operations of `arithmetic.momentum_step`, which documents them; implementations agree to the bit."""

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None: ...

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None: ...

    def advance(self, ints: Integers, bound: int) -> None: ...

    def undo(self, ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None: ...

    def checksum(self, ints: Integers, report: Tensor) -> None: ...

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None: ...


class NativeStep:
    """The compiled kernels: one pass over memory for each operation.

    The state's tensors fit them by construction. So they are launched directly, not as ``torch.ops.momentumnet``: on a
    small stream the dispatcher and the checks would take longer than the kernel.
    """

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None:
        spilled = position.new_empty(position.shape, dtype=torch.uint8) if move.digits.spills else None
        plan = move_plan(move, ints, position.dtype, ahead=False)
        launch_on("mn_step", plan, ints, move.branch.y, position, spilled, report)
        return spilled

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None:
        dtype = torch.float32 if position is None else position.dtype
        launch_on("mn_rewind", state_plan(ints.bits, dtype, bound, scale.exponent), ints, position)

    def advance(self, ints: Integers, bound: int) -> None:
        momentum_step.advance(ints, bound)

    def undo(self, ints: Integers, move: Move, spilled: Tensor | None, report: Tensor, *, ahead: bool) -> None:
        plan = move_plan(move, ints, torch.float32, ahead=ahead)
        launch_on("mn_undo", plan, ints, move.branch.y, None, spilled, report)

    def checksum(self, ints: Integers, report: Tensor) -> None:
        launch_on("mn_checksum", state_plan(ints.bits), ints, report)

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None:
        momentum_step.write_position(x, scale, position)

    def pack(self, plane: Plane, field: Field) -> Tensor:
        words = plane.tensors[0].new_empty(words_for(plane.size, field.width), dtype=torch.int32)
        self._run_on("mn_pack", plane, words, field)
        return words

    def unpack(self, words: Tensor, plane: Plane, field: Field) -> None:
        self._run_on("mn_unpack", plane, words, field)

    def _run_on(self, kernel: str, plane: Plane, words: Tensor, field: Field) -> None:
        constants = field_of(field.width, field.signed, plane.place)
        first, *second = plane.tensors
        launch(kernel, constants, first, *(second or (None,)), words)


def move_plan(move: Move, ints: Integers, position: torch.dtype, *, ahead: bool) -> libraries.Plan:
    """The constants of a step or its undo; ``position`` is the type in which the next input is written."""
    branch, scale = move.branch, move.scale
    # The kernels find the block's input in the state themselves; they need its type alone.
    skip = None if branch.x is None else branch.x.dtype
    bounds = move.digits.constants
    return plan_of(ints.bits, branch.y.dtype, skip, position, *bounds, scale.factor, scale.exponent, ahead)


_NATIVE = NativeStep()


def for_device(device: torch.device) -> MomentumStep:
    """The fastest implementation there is for tensors on ``device``."""
    return momentum_step if libraries.of(device).library is None else _NATIVE


def for_tensor(tensor: Tensor) -> MomentumStep:
    """The fastest implementation for tensors like this one: a fake or meta tensor has no memory for a kernel."""
    return momentum_step if is_hollow(tensor) else for_device(tensor.device)
