"""A state at rest: its integers in as few bits as their values need, while they wait for backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.momentum_step import Scale
from momentumnet.arithmetic.packing import Codec, Packed, as_it_is, at_rest
from momentumnet.arithmetic.planes import Integers, Plane

# Elements of the output that are computed at a time.
OUTPUT_PIECE = 1 << 18


@dataclass(frozen=True)
class AtRest:
    """x, v and the store, packed; ``bits`` are those of the integers in motion (`arithmetic.planes`)."""

    bits: tuple[int, int]
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
            ints.bits,
            at_rest(ints.x, lowest_x, highest_x, codec),
            at_rest(ints.v, lowest_v, highest_v, codec),
            at_rest(ints.s, 0, bound - 1, codec),
        )

    @classmethod
    def as_they_are(cls, ints: Integers) -> AtRest:
        """The integers themselves."""
        return cls(ints.bits, *map(as_it_is, ints.planes))

    @property
    def parts(self) -> tuple[Packed, Packed, Packed]:
        """x, v and the store."""
        return self.x, self.v, self.s

    @property
    def bytes_per_element(self) -> float:
        """In eighths."""
        return sum(part.bytes_per_element for part in self.parts)

    @property
    def is_apart(self) -> bool:
        """Whether the integers that this was made of share no memory with it."""
        return all(part.field is not None for part in self.parts)

    def split(self, size: int) -> list[AtRest]:
        """Views of it, ``size`` elements each, the last one shorter."""
        return [AtRest(self.bits, *parts) for parts in zip(*(part.split(size) for part in self.parts), strict=True)]

    def unpacked(self, codec: Codec) -> Integers:
        """The integers in motion, in new tensors where they were packed."""
        words = self.x.words
        if self.bits == (64, 64):
            return Integers(words, self.v.words, self.s.words)
        ints = Integers.empty(self.bits, self.x.size, words.device)
        for part, plane in zip(self.parts, ints.planes, strict=True):
            part.unpack_to(plane, codec)
        return ints


def write_velocity(pieces: Iterable[AtRest], into: Tensor, scale: Scale, kernels: MomentumStep) -> None:
    """Write v to ``into``, 1-D floats, in pieces of OUTPUT_PIECE."""
    for rest, piece in zip(pieces, into.split(OUTPUT_PIECE), strict=True):
        kernels.write_position(Plane.whole(rest.v.unpacked(kernels)), scale, piece)


def write_output(pieces: Iterable[AtRest], into: Tensor, factor: float, scale: Scale, kernels: MomentumStep) -> None:
    """Write x + factor v to ``into``, 1-D floats, in pieces of OUTPUT_PIECE: no state is ever unpacked as a whole."""
    for rest, piece in zip(pieces, into.split(OUTPUT_PIECE), strict=True):
        x = Plane.whole(rest.x.unpacked(kernels))
        if not factor:
            kernels.write_position(x, scale, piece)
            continue
        total = torch.empty_like(piece, dtype=scale.word.compute_dtype)
        velocity = torch.empty_like(total)
        kernels.write_position(x, scale, total)
        kernels.write_position(Plane.whole(rest.v.unpacked(kernels)), scale, velocity)
        # Rounded one after the other: in one operation, bits would depend on where a piece or a thread begins.
        piece.copy_(total.add_(velocity.mul_(factor)))
