"""What ``bench kernel`` times: one momentum step on the integer state and its inverse, beside two plain operations.

A step reads and writes the integers x, v and s (24 bytes an element), reads the branch (4) and writes the next block's
input (4): 32 bytes an element. Its inverse, which goes on to the input of the block before, moves as much. The plain
operations run over so many floats that they move the same bytes: ``x.add_(v)`` moves 12 for each float, a copy 8. So
times compare bytes per second: the arithmetic is free where it hides behind the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch

from momentumnet import native
from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic import momentum_step
from momentumnet.arithmetic.compiled import typed_operators as native_step
from momentumnet.arithmetic.momentum_step import Branch, Integers, Scale

ADD, COPY = "x.add_(v)", "copy"
BYTES = 32  # that every operation moves for each element of the state
WORD, EXPONENT = fp.INT32, 24


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
        self.ints = Integers(
            *(
                torch.randint(low, high, (elements,), dtype=WORD.dtype, generator=generator).to(device)
                for low, high in ((-(1 << 20), 1 << 20), (-(1 << 20), 1 << 20), (0, self.digits.previous_bound))
            )
        )
        self.branch = torch.randn(elements, generator=generator).to(device)
        self.scale = Scale(WORD, EXPONENT, math.ldexp(float(1 - gamma), EXPONENT))
        self.position = torch.empty_like(self.branch)


class Reference(Stream):
    """The step in PyTorch's operations: what runs where no native kernel does."""

    def step(self) -> object:
        """Step, next input, range and checksum."""
        momentum_step.step(self.ints, Branch(self.branch), self.digits, self.scale, self.position)
        return momentum_step.checksum_of(self.ints)

    def undo(self) -> object:
        """The inverse for v and s, the checksum, and x taken back to the input of the block before."""
        branch = Branch(self.branch)
        checksum = momentum_step.undo(self.ints, branch, self.digits, self.scale, None, ahead=False)
        momentum_step.rewind(self.ints, self.digits.previous_bound, self.scale, self.position)
        return checksum


class Native(Stream):
    """The compiled kernels: the same in one pass over memory."""

    def __init__(self, elements: int, gamma: Fraction, device: torch.device) -> None:
        super().__init__(elements, gamma, device)
        self.report = torch.empty(2, dtype=WORD.dtype, device=device)

    def step(self) -> object:
        """As `Reference.step`."""
        return self._run(native_step.step)

    def undo(self) -> object:
        """As `Reference.undo`."""
        return self._run(partial(native_step.undo, ahead=True))

    def _run(self, kernel: Callable[..., None]) -> object:
        kernel(
            self.ints.x,
            self.ints.v,
            self.ints.s,
            self.branch,
            self.digits,
            factor=self.scale.factor,
            exponent=self.scale.exponent,
            position=self.position,
            report=self.report,
        )
        return self.report


def operations(elements: int, gamma: Fraction, device: torch.device) -> dict[str, Callable[[], object]]:
    """Everything to time at one size, by name; they share no state, and move the same bytes."""
    x, v = (torch.zeros(elements * BYTES // 12, device=device) for _ in range(2))
    source, target = (torch.zeros(elements * BYTES // 8, device=device) for _ in range(2))
    found: dict[str, Callable[[], object]] = {ADD: lambda: x.add_(v), COPY: lambda: target.copy_(source)}
    kinds: dict[str, type[Native | Reference]] = {"native": Native} if native.available(device) else {}
    for name, kind in {**kinds, "reference": Reference}.items():
        stream = kind(elements, gamma, device)
        found[f"{name} step"], found[f"{name} undo"] = stream.step, stream.undo
    return found
