"""x, v and the store of a stream as integers, where they lie: read as floats, and packed while they wait."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.exponent import HEADROOM_BITS
from momentumnet.arithmetic.fixed_point import StoreSchedule
from momentumnet.arithmetic.layout import Layout
from momentumnet.arithmetic.planes import Integers, Plane
from momentumnet.arithmetic.reports import Reports, has_values, is_hollow, read
from momentumnet.core.checks.audit import Fingerprint
from momentumnet.core.state.range import Range
from momentumnet.core.state.rest import AtRest, Pieces, output_piece, write_output, write_velocity

if TYPE_CHECKING:
    from typing_extensions import Self  # as PyTorch has it installed


class IntegerState:
    """The integers of one step, in motion or at rest.

    Args:
        scale: what fits them.
        schedule: the bounds of the store.
        layout: how the stream lies in memory.
        kernels: what makes a step.
    """

    def __init__(self, scale: Range, schedule: StoreSchedule, layout: Layout, kernels: MomentumStep) -> None:
        self.word, self.range = scale.word, scale
        self.steps = 0
        self._schedule = schedule
        self._kernels = kernels
        self._reports = Reports(layout.device, self.word.dtype)
        self._layout = self._layout_of_start = layout
        self._ahead = False  # x is taken back already, v and s are not
        self._ready: Tensor | None = None  # x as floats, if the last step has left it
        self._report: Tensor | None = None  # of the present state; None where it has to be made first
        self._ints: Integers | None = None
        self._packed: AtRest | None = None  # the state, in place of the integers

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

    def _as_begun(self, position: Tensor) -> Tensor:
        """The first x, as it was given to the first block."""
        if self._layout is self._layout_of_start:
            return position
        return self._layout_of_start.empty(position.dtype).copy_(position)

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

    def _bound(self) -> int:
        """The present bound of the store."""
        return self._schedule[self.steps].previous_bound

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

    def fork(self, extremes: Sequence[float] | None = None) -> Self:
        ints = self._settled()
        self.pack(extremes)
        fork = copy.copy(self)
        fork.range = copy.copy(self.range)
        fork._ints = ints if self._packed is not None and self._packed.is_apart else ints.clone()
        fork._packed = None
        return fork

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.report, self.exponent)
