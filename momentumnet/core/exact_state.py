"""The exact state of a stream: x, v and the store as integers, so that every step can be undone bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.exponent import HEADROOM_BITS, full_bits
from momentumnet.arithmetic.layout import Layout
from momentumnet.arithmetic.momentum_step import Branch, Move, Scale, magnitude_of_floats
from momentumnet.arithmetic.planes import Integers, Plane
from momentumnet.arithmetic.reports import Reports, has_values, is_hollow, read
from momentumnet.core import coarsening
from momentumnet.core.audit import Fingerprint
from momentumnet.core.coupling import Undo
from momentumnet.core.range import Range
from momentumnet.core.rest import AtRest, Pieces, output_piece, write_output, write_velocity

# A stream of no more elements has its next x left as floats by the undo before, which spares a launch; of a larger one
# these would lie beside the saved tensors while the block's gradient is computed, at the peak of a backward.
SMALL_STREAM = 1 << 18


class ExactState:
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
        self.word = word or fp.word_for(x.dtype)
        self.range = Range(self.word, exponent, full_bits(self.word) if bits is None else bits, name)
        self.steps = 0
        self._schedule = fp.store_schedule(gamma, self.word)
        self.careful = careful
        self._kernels = kernels or selection.for_tensor(x)
        self._reports = Reports(x.device, self.word.dtype)
        self._layout = self._layout_of_start = Layout.of(x)
        self._ahead = False  # x is taken back already, v and s are not
        self._ready: Tensor | None = None  # x as floats, if the last step has left it
        self._report: Tensor | None = None  # of the present state; None where it has to be made first
        self._packed: AtRest | None = None  # the state, in place of the integers
        if careful:
            self.range.take_in(x, *(() if v is None else (v,)))
        self._has_velocity = v is not None
        self._ints: Integers | None = self._started(x, v)
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

    @property
    def exponent(self) -> int:
        """The scale k."""
        return self.range.exponent

    @property
    def report(self) -> Tensor:
        """The magnitude that the last step saw, as integers at this scale, and the checksum of the state."""
        if self._report is None:
            self._report = self._reports.row()
            self._kernels.checksum(self._settled(), self._report)
        return self._report

    def unfit(self, magnitude: float) -> bool:
        return self.range.excludes(magnitude)

    def unfit_on_device(self, magnitudes: Tensor) -> Tensor:
        return self.range.excludes_on_device(magnitudes)

    @property
    def x(self) -> Tensor:
        """The integers of the position, in the stream's shape."""
        return self._shaped(self._settled().x)

    @property
    def v(self) -> Tensor:
        """The integers of the velocity."""
        return self._shaped(self._settled().v)

    @property
    def s(self) -> Tensor:
        """The store."""
        return self._shaped(self._settled().s)

    def _shaped(self, plane: Plane) -> Tensor:
        return plane.read().as_strided(self._layout.shape, self._layout.stride)

    @property
    def packed_bytes(self) -> float | None:
        """Bytes an element at rest, in eighths; None while the state is in use."""
        return None if self._packed is None else self._packed.bytes_per_element

    def position(self, dtype: torch.dtype) -> Tensor:
        position = self._written(self._settled(), dtype)
        return position if self.steps else self._as_begun(position)

    def velocity(self, dtype: torch.dtype) -> Tensor:
        velocity = self._layout.empty(dtype)
        write_velocity(self._at_rest_or_not(), self._layout.flat(velocity), self.range.scale(), self._kernels)
        return velocity

    def output(self, dtype: torch.dtype, factor: float) -> Tensor:
        output = self._layout.empty(dtype)
        write_output(self._at_rest_or_not(), self._layout.flat(output), factor, self.range.scale(), self._kernels)
        return output

    def _at_rest_or_not(self) -> Pieces:
        """The state as it lies, in pieces of `output_piece`."""
        piece = output_piece(self._layout.shape.numel(), self._layout.device)
        if self._packed is None:
            return self._settled().split(piece)
        return self._packed.split(piece)

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

    def _as_begun(self, position: Tensor) -> Tensor:
        """The first x, as it was given to the first block."""
        if self._layout is self._layout_of_start:
            return position
        return self._layout_of_start.empty(position.dtype).copy_(position)

    def _bound(self) -> int:
        """The present bound of the store."""
        return self._schedule[self.steps].previous_bound

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

    def _written(self, ints: Integers, dtype: torch.dtype) -> Tensor:
        """x as floats: those that the last pass over the state has left, else in a pass of its own."""
        ready, self._ready = self._ready, None
        if ready is not None and ready.dtype == dtype:
            return ready
        position = self._layout.empty(dtype)
        self._kernels.write_position(ints.x, self.range.scale(), self._layout.flat(position))
        return position

    def _opened(self) -> Integers:
        """The integers as they are, x possibly ahead."""
        if self._packed is not None:
            self._ints, self._packed = self._packed.unpacked(self._kernels), None
        if self._ints is None:
            raise RuntimeError("an exact state holds neither integers nor packed ones; please report this")
        return self._ints

    def _settled(self) -> Integers:
        """The integers of one and the same step."""
        ints = self._opened()
        if self._ahead:
            self._kernels.advance(ints, self._bound())
            self._ahead, self._ready = False, None
        return ints

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

    def extremes(self) -> Tensor | None:
        if self._packed is not None:
            return None
        ints = self._settled()
        return self._kernels.extremes(ints) if ints.size else None

    def pack(self, extremes: Sequence[float] | None = None) -> None:
        """Keep the state in as few bits as its values need until it is asked for again.

        Of values that cannot be read it is assumed that they fill the bits for which the scale was chosen; where they
        will be there, but are not known yet (CUDA records a graph), the state stays as it is.
        """
        if self._packed is not None or not self._settled().size:
            return
        ints = self._settled()
        found = self.extremes() if extremes is None else None
        if found is not None and has_values(found):
            extremes = read(found)
        if extremes is None and is_hollow(ints.tensors[0]):
            most = 1 << (self.range.bits + HEADROOM_BITS)
            extremes = (-most, most - 1) * 2
        if extremes is not None:
            self._packed = AtRest.of(ints, extremes, self._bound(), self._kernels)
            self._ints = self._ready = None

    def fork(self, extremes: Sequence[float] | None = None) -> ExactState:
        ints = self._settled()
        self.pack(extremes)
        fork = copy.copy(self)
        fork.range = copy.copy(self.range)
        fork._ints = ints if self._packed is not None and self._packed.is_apart else ints.clone()
        fork._packed = None
        return fork

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.report, self.exponent)

    def matches(self, fingerprint: Fingerprint) -> bool:
        return self.fingerprint().equals(fingerprint)
