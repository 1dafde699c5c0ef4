"""The exact state of a stream: x, v and the store as integers, so that every step can be undone bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.exponent import full_bits
from momentumnet.arithmetic.layout import Layout
from momentumnet.arithmetic.momentum_step import Branch, Move, Scale, magnitude_of_floats
from momentumnet.arithmetic.planes import Integers
from momentumnet.arithmetic.reports import read
from momentumnet.core.state import coarsening
from momentumnet.core.state.coupling import Undo
from momentumnet.core.state.integer_state import IntegerState
from momentumnet.core.state.range import Range

# A stream of no more elements has its next x left as floats by the undo before, which spares a launch; of a larger one
# these would lie beside the saved tensors while the block's gradient is computed, at the peak of a backward.
SMALL_STREAM = 1 << 17


class ExactState(IntegerState):
    """x, v and the store as integers: every step can be undone bit for bit.

    Args:
        x: start of the stream, a float tensor; float64 is carried in int64, all else in int32 by default.
        v: initial velocity, or None for zero.
        gamma: n/d in (0, 1].
        exponent: the scale k, value = integer * 2**-k; lowered by itself on overflow.
        name: the stream's name, for errors.
        bits: bits of the largest magnitude for which a scale is chosen; None for all that the word has.
        word: the integers' type; None for that of x.
        careful: look at every report at once, and make the scale coarser where values do not fit. Without, nothing is
            read from the device: the reports tell later, and a state that did not fit means nothing.
        kernels: what makes a step; None for the momentum step as it is selected for x.

    Raises:
        NonFiniteBranch: x or v holds NaN or Inf (if careful).
        StateRangeError: no scale can carry x and v (if careful).
    """

    def __init__(
        self,
        x: Tensor,
        v: Tensor | None,
        gamma: Fraction,
        exponent: int,
        name: str,
        bits: int | None = None,
        *,
        word: fp.Word | None = None,
        careful: bool = True,
        kernels: MomentumStep | None = None,
    ) -> None:
        word = word or fp.word_for(x.dtype)
        fitting = Range(word, exponent, full_bits(word) if bits is None else bits, name)
        super().__init__(fitting, fp.store_schedule(gamma, word), Layout.of(x), kernels or selection.for_tensor(x))
        self.careful = careful
        if careful:
            self.range.take_in(x, *(() if v is None else (v,)))
        self._has_velocity = v is not None
        self._ints = self._started(x, v)
        report, scale = self.report, math.ldexp(1.0, self.exponent)
        report[0] = magnitude_of_floats(x.detach(), scale, self.word)
        if v is not None:
            report[0] = torch.maximum(report[0], magnitude_of_floats(v.detach(), scale, self.word))

    def _started(self, x: Tensor, v: Tensor | None) -> Integers:
        """The integers of floats, and a store of zeros."""
        ints = Integers.empty((self.word.bits, self._schedule.store_bits), x.numel(), x.device)
        v = None if v is None else self._layout.flat(v)
        self._kernels.start(ints, self._layout.flat(x), v, self.range.scale())
        return ints

    def step(self, branch: Branch, weight: Fraction, coarsest: int | None = None) -> Undo:
        """One step; where it overflows, the scale is made coarser first, its low bits put aside: exact, never silent.

        A scale finer than ``coarsest`` is made coarser in any case: earlier passes had to.

        Raises:
            NonFiniteBranch: the branch holds NaN or Inf; the state is as before (if careful).
            StateRangeError: no scale can carry the values; the state is as before (if careful).
        """
        if not self.steps:
            self._lie_like(branch.y)
        branch = self._flat_branch(branch)
        exponent = self.exponent if coarsest is None else min(self.exponent, coarsest)
        while True:
            bits, low_bits = self.exponent - exponent, None
            if bits:
                low_bits = coarsening.coarsen(self._settled(), self._bound(), bits)
                self._rescale(-bits)
            undo = Undo(self._step(branch, weight), bits, low_bits)
            if not self.careful or not self.unfit(read(self.report[0])):
                return undo
            largest = coarsening.largest_of(self._settled(), branch, float(weight), self.exponent)
            self._undo(undo, branch, weight, ahead=False)
            exponent = min(self.range.coarser_exponent(largest), exponent - 1)

    def _step(self, branch: Branch, weight: Fraction) -> Tensor | None:
        ints, position = self._settled(), self._layout.empty(branch.y.dtype)
        move = Move(branch, self._schedule[self.steps], self.range.scale(weight))
        self._report = self._reports.row()
        spilled = self._kernels.step(ints, move, self._layout.flat(position), self._report)
        self.steps += 1
        self._ready = position
        return spilled

    def _flat_branch(self, branch: Branch) -> Branch:
        return Branch(self._layout.flat(branch.y), None if branch.x is None else self._layout.flat(branch.x))

    def _lie_like(self, y: Tensor) -> None:
        """Before the first step: lie in memory as what the first block has returned.

        Blocks of attention, or with weights in channels-last order, return another order than the stream begins with,
        and give it to one another. In that of the start, all they return would be copied, at each step and each undo.
        """
        layout = self._layout.or_that_of(y)
        if layout is self._layout:
            return
        x, *others = self._settled().tensors
        parts = (x, *others) if self._has_velocity else (x,)  # all else is zero
        moved = [layout.flat(part.as_strided(self._layout.shape, self._layout.stride)) for part in parts]
        self._ints, self._layout, self._ready = Integers(*moved, *others[len(parts) - 1 :]), layout, None
        if self._report is not None:  # in place: the first step's fingerprint is made of it
            row = self._reports.row()
            self._kernels.checksum(self._ints, row)
            self._report[1:].copy_(row[1:])

    def _rescale(self, bits: int) -> None:
        self.range.exponent += bits
        self._ready = self._report = None

    def previous_position(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        position = self._position_before(undo, dtype)
        return position if self.steps > 1 else self._as_begun(position)

    def _position_before(self, undo: Undo, dtype: torch.dtype) -> Tensor:
        ints = self._opened()
        if undo.low_bits is not None:
            self._go_ahead(None)
            position, scale = self._layout.empty(dtype), Scale(self.word, self.exponent + undo.widened_bits)
            low_bits, flat = undo.low_bits, self._layout.flat(position)
            coarsening.write_refined_position(ints.x, undo.widened_bits, low_bits, scale, flat)
            return position
        if not self._ahead:
            self._go_ahead(dtype)
        return self._written(ints, dtype)

    def _go_ahead(self, dtype: torch.dtype | None) -> None:
        """Take x back by one step, and leave it as floats if a dtype is given."""
        if self._ahead:
            return
        position = None if dtype is None else self._layout.empty(dtype)
        flat = None if position is None else self._layout.flat(position)
        self._kernels.rewind(self._opened(), self._bound(), self.range.scale(), flat)
        self._ahead, self._ready = True, position

    def undo(self, undo: Undo, branch: Branch, weight: Fraction, *, ahead: bool = False) -> None:
        self._undo(undo, self._flat_branch(branch), weight, ahead and undo.low_bits is None)

    def _undo(self, undo: Undo, branch: Branch, weight: Fraction, ahead: bool) -> None:
        self._go_ahead(None)
        self.steps -= 1
        move = Move(branch, self._schedule[self.steps], self.range.scale(weight))
        self._report = self._reports.row()
        position = self._layout.empty(branch.y.dtype) if ahead and self._layout.shape.numel() <= SMALL_STREAM else None
        flat = None if position is None else self._layout.flat(position)
        self._kernels.undo(self._opened(), move, undo.spilled, self._report, ahead=ahead, position=flat)
        self._ahead, self._ready = ahead, position
        if undo.low_bits is not None:
            coarsening.refine(self._settled(), self._bound(), undo.widened_bits, undo.low_bits)
            self._rescale(undo.widened_bits)
