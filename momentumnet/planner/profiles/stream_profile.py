"""A stream's state in a training step: how many bytes it takes on its way, and at rest."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch

from momentumnet.arithmetic.adjoint import velocity_dtype
from momentumnet.arithmetic.fixed_point import Word
from momentumnet.arithmetic.state_bytes import moving_bytes, resting_bytes
from momentumnet.core.state.exact_state import SMALL_STREAM
from momentumnet.core.state.rest import OUTPUT_PIECE


@dataclass(frozen=True)
class StreamProfile:
    """A stream's state: how many elements, in which type, and how its integers are kept.

    Attributes:
        path: the stream's path.
        elements: of all that it carries.
        dtype: its type.
        gamma: its momentum factor.
        word: of its integers; None for float arithmetic.
        bits: for which its scale is chosen.
        undo_seconds: of taking a step back.
        spread: how far typical values lie below the largest.
        step_seconds: of a step.
        together: whether it carries several tensors, packed in one, of which blocks are given parts.
        piece: elements of its output that are made at a time.
        native: whether kernels make them.
        start: the storages of what it begins with, which is held while its forward runs, to play a pass again.
    """

    path: str
    elements: int
    dtype: torch.dtype
    gamma: Fraction
    word: Word | None
    bits: int
    undo_seconds: float
    spread: float = 1.0
    step_seconds: float = 0.0
    together: bool = False
    piece: int = OUTPUT_PIECE
    native: bool = False
    start: frozenset[int] = frozenset()

    @cached_property
    def in_motion(self) -> int:
        """Bytes of the state while its stream runs."""
        if self.word is None:
            return 2 * self.elements * max(4, self.dtype.itemsize)
        return self.elements * moving_bytes(self.gamma, self.word)

    @cached_property
    def position(self) -> int:
        """Bytes of x, as a block is given it."""
        return self.elements * self.dtype.itemsize

    def gradients(self, *, first: bool, handed_on: bool) -> int:
        """Bytes of the gradients of x and v that wait while the backward of a block runs.

        That is none where nobody in front gets them ``handed_on``; the ``first`` block's v has none.
        """
        velocity = 0 if first else self.elements * velocity_dtype(self.dtype, float(self.gamma)).itemsize
        return self.position + velocity if handed_on else 0

    def ahead(self, steps: int) -> int:
        """Bytes of the x of the block in front, which is made when the last of so many steps is taken back."""
        is_made = steps > 1 and self.word is not None and self.elements <= SMALL_STREAM
        return self.position if is_made else 0

    def at_rest(self, steps: int) -> int:
        """Bytes of the state while it waits for backward to undo so many steps."""
        if self.word is None:
            return self.in_motion
        return int(self.elements * resting_bytes(self.gamma, self.word, self.bits, steps)) if steps else 0

    def ending(self, *, waits: bool) -> int:
        """Bytes with which its output is made of its state, piece by piece, beside the last block's output.

        A state that ``waits`` for backward is packed by then; kernels read any other where it lies.
        """
        output = self.position
        if self.word is None:
            return output
        unpacked = 8 if waits or not self.native else 0  # x and v
        return output + (unpacked + (0 if self.native else 8)) * min(self.elements, self.piece)

    def at_end(self, steps: int) -> int:
        """Bytes of the state, of which so many steps wait, and with which its output is made."""
        return self.in_motion + self.put_aside(steps) + self.ending(waits=bool(steps))

    def put_aside(self, steps: int) -> int:
        """Those of them that the store has put aside on the way."""
        if steps not in self._aside:
            self._aside[steps] = self._count_aside(steps)
        return self._aside[steps]

    @cached_property
    def _aside(self) -> dict[int, int]:
        return {}  # by steps: a search asks for each of them thousands of times

    def _count_aside(self, steps: int) -> int:
        if self.word is None or not steps:
            return 0
        whole, none = (resting_bytes(self.gamma, self.word, self.bits, count) for count in (steps, 0))
        return int(self.elements * max(0.0, whole - none - 2))
