"""Which implementation of the momentum step serves a device: the native kernels, or the plain operations."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.compiled.launching import (
    DTYPES,
    field_of,
    float_plan,
    launch,
    launch_on,
    plan_of,
    state_plan,
)
from momentumnet.arithmetic.momentum_step import Move, Scale
from momentumnet.arithmetic.packing import Codec, Field, words_for
from momentumnet.arithmetic.planes import Integers, Place, Plane
from momentumnet.arithmetic.reports import is_hollow


class MomentumStep(Codec, Protocol):
    """The operations of `arithmetic.momentum_step`, which documents them; implementations agree to the bit."""

    def step(self, ints: Integers, move: Move, position: Tensor, report: Tensor) -> Tensor | None: ...

    def rewind(self, ints: Integers, bound: int, scale: Scale, position: Tensor | None) -> None: ...

    def advance(self, ints: Integers, bound: int) -> None: ...

    def undo(
        self,
        ints: Integers,
        move: Move,
        spilled: Tensor | None,
        report: Tensor,
        *,
        ahead: bool,
        position: Tensor | None = None,
    ) -> None: ...

    def checksum(self, ints: Integers, report: Tensor) -> None: ...

    def start(self, ints: Integers, x: Tensor, v: Tensor | None, scale: Scale) -> None: ...

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None: ...

    def write_output(self, x: Plane, v: Plane, factor: float, scale: Scale, output: Tensor) -> None: ...

    def extremes(self, ints: Integers) -> Tensor: ...


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

    def undo(
        self,
        ints: Integers,
        move: Move,
        spilled: Tensor | None,
        report: Tensor,
        *,
        ahead: bool,
        position: Tensor | None = None,
    ) -> None:
        plan = move_plan(move, ints, torch.float32 if position is None else position.dtype, ahead=ahead)
        launch_on("mn_undo", plan, ints, move.branch.y, position, spilled, report)

    def checksum(self, ints: Integers, report: Tensor) -> None:
        launch_on("mn_checksum", state_plan(ints.bits), ints, report)

    def start(self, ints: Integers, x: Tensor, v: Tensor | None, scale: Scale) -> None:
        if v is None and x.dtype in DTYPES:
            factor = math.ldexp(1.0, scale.exponent)
            launch_on("mn_start", float_plan(ints.bits, x.dtype, factor, scale.exponent), ints, x)
        else:
            momentum_step.start(ints, x, v, scale)

    def write_position(self, x: Plane, scale: Scale, position: Tensor) -> None:
        bits = _BITS_OF_X.get((x.place, x.tensors[0].dtype))
        if bits is None:
            momentum_step.write_position(x, scale, position)
        else:
            launch("mn_position", float_plan(bits, position.dtype, 1.0, scale.exponent), x.tensors[0], position)

    def write_output(self, x: Plane, v: Plane, factor: float, scale: Scale, output: Tensor) -> None:
        first, second = x.tensors[0], v.tensors[-1]  # of joint integers, the words of both
        plan = float_plan(_BITS_OF_X[x.place, first.dtype], output.dtype, factor, scale.exponent)
        launch("mn_output", plan, first, second, output)

    def extremes(self, ints: Integers) -> Tensor:
        if ints.bits == (64, 64):
            return momentum_step.extremes(ints)
        found = ints.tensors[0].new_zeros(2)
        for plane, word in zip((ints.x, ints.v), found.unbind(0), strict=True):
            self._run_on("mn_reach", plane, word, Field(1, signed=False))
        largest = found & _WITHOUT_SIGN
        return torch.stack([(found >> 31).bitwise_and_(~largest), largest], 1).flatten()

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
# By where a state's x lies, the bits of its integers and of a store that could be beside them.
_BITS_OF_X = {
    (Place.WHOLE, torch.int32): (32, 32),
    (Place.WHOLE, torch.int64): (64, 64),
    (Place.JOINT_X, torch.int32): (24, 16),
}
# Of a word of mn_reach.
_WITHOUT_SIGN = (1 << 31) - 1


def for_device(device: torch.device) -> MomentumStep:
    """The fastest implementation there is for tensors on ``device``."""
    return momentum_step if libraries.of(device).library is None else _NATIVE


def for_tensor(tensor: Tensor) -> MomentumStep:
    """The fastest implementation for tensors like this one: a fake or meta tensor has no memory for a kernel."""
    return momentum_step if is_hollow(tensor) else for_device(tensor.device)
