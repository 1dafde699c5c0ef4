"""A state at rest: its integers in as few bits as their values need, while they wait for backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momentumnet.arithmetic.compiled.selection import MomentumStep
from momentumnet.arithmetic.momentum_step import Scale
from momentumnet.arithmetic.packing import BLOCK, Codec, Packed, at_rest
from momentumnet.arithmetic.planes import Integers, Plane

# Elements of the output that are computed at a time. On a GPU, where each piece is a handful of launches, there are few
# pieces: they take less than packing the state has taken before.
OUTPUT_PIECE = 1 << 18
MOST_PIECES = 4


def output_piece(size: int, device: torch.device) -> int:
    """Elements of a piece of an output of ``size`` elements: whole blocks, as packed integers are split."""
    if device.type == "cpu":
        return OUTPUT_PIECE
    return max(OUTPUT_PIECE, -(-size // (MOST_PIECES * BLOCK)) * BLOCK)


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


Pieces = Iterable[AtRest | Integers]


def write_velocity(pieces: Pieces, into: Tensor, scale: Scale, kernels: MomentumStep) -> None:
    """Write v to ``into``, 1-D floats, in pieces of `output_piece`."""
    for state, piece in zip(pieces, _split(into), strict=True):
        kernels.write_position(_plane(state.v, kernels), scale, piece)


def write_output(pieces: Pieces, into: Tensor, factor: float, scale: Scale, kernels: MomentumStep) -> None:
    """Write x + factor v to ``into``, 1-D floats, in pieces of `output_piece`: no state is ever unpacked as a whole."""
    for state, piece in zip(pieces, _split(into), strict=True):
        x = _plane(state.x, kernels)
        if factor:
            kernels.write_output(x, _plane(state.v, kernels), factor, scale, piece)
        else:
            kernels.write_position(x, scale, piece)


def _plane(part: Packed | Plane, codec: Codec) -> Plane:
    """The integers: in motion where they lie, which takes no memory; else unpacked."""
    return part if isinstance(part, Plane) else Plane.whole(part.unpacked(codec))


def _split(into: Tensor) -> tuple[Tensor, ...]:
    return into.split(output_piece(into.numel(), into.device))
