"""A state at rest: its integers in as few bits as their values need, while they wait for backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.momentum_step import Integers, Scale
from momentumnet.arithmetic.packing import Codec, Packed, as_it_is, at_rest

# Elements of the output that are computed at a time.
OUTPUT_PIECE = 1 << 18


@dataclass(frozen=True)
class AtRest:
    """x, v and the store, packed."""

    x: Packed
    v: Packed
    s: Packed

    @classmethod
    def of(cls, ints: Integers, extremes: Sequence[float], bound: int, codec: Codec) -> AtRest:
        """The integers in the bits that their extremes need: the smallest and largest x, then those of v.

        The store's are known, it lies below ``bound``.
        """
        lowest_x, highest_x, lowest_v, highest_v = map(int, extremes)
        return cls(
            at_rest(ints.x, lowest_x, highest_x, codec),
            at_rest(ints.v, lowest_v, highest_v, codec),
            at_rest(ints.s, 0, bound - 1, codec),
        )

    @classmethod
    def as_they_are(cls, ints: Integers) -> AtRest:
        """The integers themselves."""
        return cls(as_it_is(ints.x), as_it_is(ints.v), as_it_is(ints.s))

    @property
    def parts(self) -> tuple[Packed, Packed, Packed]:
        """x, v and the store."""
        return self.x, self.v, self.s

    @property
    def bytes_per_element(self) -> float:
        """In eighths."""
        return sum(part.bytes_per_element for part in self.parts)

    def unpacked(self, codec: Codec) -> Integers:
        """The integers, in new tensors where they were packed."""
        return Integers(*(part.unpacked(codec) for part in self.parts))

    def write_output(self, into: Tensor, factor: float, scale: Scale, kernels: MomentumStep) -> None:
        """Write x + factor v to ``into``, 1-D floats; in pieces: a packed state is never unpacked as a whole."""
        pieces = zip(self.x.split(OUTPUT_PIECE), self.v.split(OUTPUT_PIECE), into.split(OUTPUT_PIECE), strict=True)
        for x, v, piece in pieces:
            if not factor:
                kernels.write_position(x.unpacked(kernels), scale, piece)
                continue
            total = torch.empty_like(piece, dtype=scale.word.compute_dtype)
            velocity = torch.empty_like(total)
            kernels.write_position(x.unpacked(kernels), scale, total)
            kernels.write_position(v.unpacked(kernels), scale, velocity)
            # Rounded one after the other: in one operation, bits would depend on where a piece or a thread begins.
            piece.copy_(total.add_(velocity.mul_(factor)))

    def taken_over(self, ints: Integers) -> Integers:
        """The integers that this was made of, for a state that goes on: copies of those that rest as they are."""
        values = zip((ints.x, ints.v, ints.s), self.parts, strict=True)
        return Integers(*(value.clone() if part.field is None else value for value, part in values))
