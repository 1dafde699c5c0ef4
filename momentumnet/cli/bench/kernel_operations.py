"""What ``bench kernel`` times: one momentum step on the integer state and its inverse, beside two plain operations.

A step reads and writes the integers x, v and s (24 bytes an element), reads the branch (4) and writes the next block's
input (4); its inverse moves as much. ``x.add_(v)`` moves 12 bytes an element, a copy 8. Bytes per second compare them:
the arithmetic is free where it hides behind the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.core import fixed_point as fp

ADD, COPY = "x.add_(v)", "copy"
STEP_BYTES = 32
EXPONENT = 24
WORD = fp.INT32


@dataclass(frozen=True)
class Operation:
    """One thing to time.

    Attributes:
        bytes_per_element: Bytes that it has to move.
        run: Does it once.
    """

    bytes_per_element: int
    run: Callable[[], object]


class ReferenceKernel:
    """The momentum step in PyTorch's integer operations: what runs where no native kernel does.

    Args:
        elements: Size of the state.
        gamma: n/d in (0, 1).
        device: Where the state is.
    """

    def __init__(self, elements: int, gamma: Fraction, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        schedule = fp.store_schedule(gamma, WORD)
        # A step that puts no byte aside, as most steps at a gamma near 1.
        self.digits = next(schedule[index] for index in range(64) if schedule[index].spills == 0)
        self.x, self.v = (
            torch.randint(-(1 << 20), 1 << 20, (elements,), dtype=WORD.dtype, generator=generator).to(device)
            for _ in range(2)
        )
        self.s = torch.randint(self.digits.bound, (elements,), dtype=WORD.dtype, generator=generator).to(device)
        self.branch = torch.randn(elements, generator=generator).to(device)
        self.factor = math.ldexp(float(1 - gamma), EXPONENT)

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """The step forward; returns the next block's input, the largest magnitudes and the checksum."""
        v, self.s, _ = fp.multiply(self.v, self.s, self.digits)
        self.v = v.add_(fp.to_fixed(self.branch, self.factor, WORD))
        self.x = self.x.add_(self.v).add_(fp.carry(self.s, self.digits.next_bound))
        return self._seen()

    def undo(self) -> tuple[Tensor, Tensor, Tensor]:
        """The step backward; returns the input of the block before, the largest magnitudes and the checksum."""
        self.x = self.x.sub_(self.v).sub_(fp.carry(self.s, self.digits.next_bound))
        v = self.v.sub_(fp.to_fixed(self.branch, self.factor, WORD))
        self.v, self.s = fp.divide(v, self.s, self.digits, ())
        return self._seen()

    def _seen(self) -> tuple[Tensor, Tensor, Tensor]:
        position = fp.to_float(self.x, EXPONENT, WORD, torch.float32)
        largest = torch.stack([*torch.aminmax(self.x), *torch.aminmax(self.v)])
        return position, largest, fp.checksum(self.x, self.v, self.s)


def operations(elements: int, gamma: Fraction, device: torch.device) -> dict[str, Operation]:
    """Everything to time at one size, by name; they share no state."""
    reference = ReferenceKernel(elements, gamma, device)
    x, v, copy = (torch.zeros(elements, device=device) for _ in range(3))
    return {
        ADD: Operation(12, lambda: x.add_(v)),
        COPY: Operation(8, lambda: copy.copy_(v)),
        "reference step": Operation(STEP_BYTES, reference.step),
        "reference undo": Operation(STEP_BYTES, reference.undo),
    }
