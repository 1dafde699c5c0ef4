"""What ``bench kernel`` times: one momentum step on the integer state and its inverse, beside two plain operations.

A step reads and writes the integers x, v and s (20 bytes an element, 24 at a gamma whose store takes the whole word),
reads the branch (4) and writes the next block's input (4). Its inverse, which goes on to the input of the block before,
moves as much. The plain
operations run over so many floats that they move the same bytes: ``x.add_(v)`` moves 12 for each float, a copy 8. So
times compare bytes per second: the arithmetic is free where it hides behind the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet import native
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled.launching import launch_on
from momentumnet.arithmetic.compiled.selection import move_plan
from momentumnet.arithmetic.momentum_step import Branch, Move, Scale
from momentumnet.arithmetic.planes import Integers
from momentumnet.arithmetic.reports import Reports

ADD, COPY = "x.add_(v)", "copy"
WORD, EXPONENT = fp.INT32, 24


def bytes_moved(gamma: Fraction) -> int:
    """Bytes that every operation moves for each element of the state."""
    state = 2 * WORD.bits // 8 + fp.store_schedule(gamma, WORD).store_bits // 8
    return 2 * state + 8


class Stream:
    """A state of random integers, in the middle of a stream, and a branch.

    Args:
        elements: Size of the state.
        gamma: n/d in (0, 1).
        device: Where the state is.
    """

    def __init__(self, elements: int, gamma: Fraction, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        schedule = fp.store_schedule(gamma, WORD)
        # A step that puts no byte aside, as most do at a gamma near 1.
        self.digits = next(digits for index in range(8, 72) if not (digits := schedule[index]).spills)
        self.ints = Integers.empty((WORD.bits, schedule.store_bits), elements, device)
        limits = ((-(1 << 20), 1 << 20), (-(1 << 20), 1 << 20), (0, self.digits.previous_bound))
        for plane, (low, high) in zip(self.ints.planes, limits, strict=True):
            plane.write(torch.randint(low, high, (elements,), dtype=WORD.dtype, generator=generator).to(device))
        scale = Scale(WORD, EXPONENT, math.ldexp(float(1 - gamma), EXPONENT))
        self.move = Move(Branch(torch.randn(elements, generator=generator).to(device)), self.digits, scale)
        self.position = torch.empty_like(self.move.branch.y)
        self.reports = Reports(device, WORD.dtype)


class Reference(Stream):
    """The step in PyTorch's operations: what runs where no native kernel does."""

    def step(self) -> Tensor:
        """Step, next input, range and checksum."""
        report = self.reports.row()
        momentum_step.step(self.ints, self.move, self.position, report)
        return report

    def undo(self) -> Tensor:
        """The inverse for v and s, the checksum, and x taken back to the input of the block before."""
        report = self.reports.row()
        momentum_step.undo(self.ints, self.move, None, report, ahead=False)
        momentum_step.rewind(self.ints, self.digits.previous_bound, self.move.scale, self.position)
        return report


class Native(Stream):
    """The compiled kernels: the same in one pass over memory, launched as the engine launches them."""

    def step(self) -> Tensor:
        """As `Reference.step`."""
        return self._run("mn_step", ahead=False)

    def undo(self) -> Tensor:
        """As `Reference.undo`."""
        return self._run("mn_undo", ahead=True)

    def _run(self, kernel: str, *, ahead: bool) -> Tensor:
        ints, report = self.ints, self.reports.row()
        plan = move_plan(self.move, ints, self.position.dtype, ahead=ahead)
        launch_on(kernel, plan, ints, self.move.branch.y, self.position, None, report)
        return report


def operations(elements: int, gamma: Fraction, device: torch.device) -> dict[str, Callable[[], object]]:
    """Everything to time at one size, by name; they share no state, and move the same bytes."""
    moved = elements * bytes_moved(gamma)
    x, v = (torch.zeros(moved // 12, device=device) for _ in range(2))
    source, target = (torch.zeros(moved // 8, device=device) for _ in range(2))
    found: dict[str, Callable[[], object]] = {ADD: lambda: x.add_(v), COPY: lambda: target.copy_(source)}
    kinds: dict[str, type[Native | Reference]] = {"native": Native} if native.available(device) else {}
    for name, kind in {**kinds, "reference": Reference}.items():
        stream = kind(elements, gamma, device)
        found[f"{name} step"], found[f"{name} undo"] = stream.step, stream.undo
    return found
