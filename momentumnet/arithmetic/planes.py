"""x, v and the store s of a stream while it moves: where they lie, in as few bytes as one pass over them can work on.

    word     store     tensors                                      bytes an element
    64 bits  64 bits   x, v, s: int64                               24
    32 bits  32 bits   x, v, s: int32                               12
    32 bits  16 bits   x, v: int32; s: int16                        10
    24 bits  16 bits   two of int32: x << 8 | v >> 16, v << 16 | s  8

A short store is a number without a sign, whose bits an int16 holds. In the last row all three are *joint*: one number
of 24, 24 and 16 bits, cut in two, so that kernels load and store words of 32 bits (csrc/planes.h has the same).

What works on joint integers in plain PyTorch makes int32 of a piece at a time, never of all of them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements that plain PyTorch works on at a time; a large state is cut into no more than so many pieces.
PIECE = 1 << 16
MOST_PIECES = 64
STORE_MASK = (1 << 16) - 1

_DTYPES = {
    (64, 64): (torch.int64,) * 3,
    (32, 32): (torch.int32,) * 3,
    (32, 16): (torch.int32, torch.int32, torch.int16),
    (24, 16): (torch.int32,) * 2,
}


class Place(enum.IntEnum):
    """Where one of x, v and s lies: alone, or joint with the others (csrc/interface.h has the numbers)."""

    WHOLE = 0
    SHORT_STORE = 1
    JOINT_X = 2
    JOINT_V = 3
    JOINT_STORE = 4


@dataclass(frozen=True)
class Plane:
    """One of x, v and s, as its integers lie in one or two 1-D tensors."""

    place: Place
    tensors: tuple[Tensor, ...]

    @classmethod
    def whole(cls, value: Tensor) -> Plane:
        """A tensor of its own, int32 or int64."""
        return cls(Place.WHOLE, (value,))

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensors[0].numel()

    def split(self, size: int) -> list[Plane]:
        """Views of it, ``size`` elements each, the last one shorter."""
        return [Plane(self.place, parts) for parts in zip(*(part.split(size) for part in self.tensors), strict=True)]

    def pieces(self) -> list[Plane]:
        """It in pieces of which a copy is small; in one where reading makes no copy."""
        return [self] if self.place is Place.WHOLE else self.split(piece_of(self.size))

    def read(self) -> Tensor:
        """The integers: the very tensor where it is whole, else a new int32."""
        first, second = self.tensors[0], self.tensors[-1]
        if self.place is Place.SHORT_STORE:
            return first.int().bitwise_and_(STORE_MASK)
        if self.place is Place.JOINT_X:
            return first >> 8
        if self.place is Place.JOINT_V:
            return (second >> 16).bitwise_and_(0xFFFF).bitwise_or_((first << 24).bitwise_right_shift_(8))
        return first if self.place is Place.WHOLE else second & STORE_MASK

    def write(self, value: Tensor) -> None:
        """Keep the integers, cut off to the bits that there are; what is joint with them stays as it is."""
        first, second = self.tensors[0], self.tensors[-1]
        if self.place is Place.JOINT_X:
            first.bitwise_and_(0xFF).bitwise_or_(value << 8)
        elif self.place is Place.JOINT_V:
            first.bitwise_and_(-0x100).bitwise_or_((value >> 16).bitwise_and_(0xFF))
            second.bitwise_and_(STORE_MASK).bitwise_or_(value << 16)
        elif self.place is Place.JOINT_STORE:
            second.bitwise_and_(~STORE_MASK).bitwise_or_(value & STORE_MASK)
        elif value is not first:
            first.copy_(value)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest integer, on the device; there has to be one."""
        found = [torch.aminmax(piece.read()) for piece in self.pieces()]
        lows, highs = (torch.stack(values) for values in zip(*found, strict=True))
        return lows.amin(), highs.amax()


class Integers:
    """x, v and the store s of a stream in motion.

    Args:
        x: 1-D; int64, int32, or the first words of joint integers.
        v: like ``x``; or the second words.
        s: like ``x``, or int16; None where the integers are joint.
    """

    def __init__(self, x: Tensor, v: Tensor, s: Tensor | None = None) -> None:
        self.tensors = (x, v) if s is None else (x, v, s)
        # Those of a word, and those of the store.
        self.bits = (24, 16) if s is None else (8 * x.element_size(), 8 * s.element_size())

    @classmethod
    def empty(cls, bits: tuple[int, int], size: int, device: torch.device) -> Integers:
        """Room for ``size`` elements; ``bits`` of a word and of the store, as the module's table has them.

        Raises:
            ValueError: the table has no such bits.
        """
        if bits not in _DTYPES:
            known = " or ".join(map(str, _DTYPES))
            raise ValueError(f"the bits of a word and of its store must be {known}, got {bits}")
        return cls(*(torch.empty(size, dtype=dtype, device=device) for dtype in _DTYPES[bits]))

    @property
    def is_joint(self) -> bool:
        """Whether x, v and s share words."""
        return len(self.tensors) == 2

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensors[0].numel()

    @property
    def x(self) -> Plane:
        return Plane(Place.JOINT_X, self.tensors[:1]) if self.is_joint else Plane.whole(self.tensors[0])

    @property
    def v(self) -> Plane:
        return Plane(Place.JOINT_V, self.tensors) if self.is_joint else Plane.whole(self.tensors[1])

    @property
    def s(self) -> Plane:
        if self.is_joint:
            return Plane(Place.JOINT_STORE, self.tensors[1:])
        return Plane(Place.SHORT_STORE if self.bits == (32, 16) else Place.WHOLE, self.tensors[2:])

    @property
    def planes(self) -> tuple[Plane, Plane, Plane]:
        """x, v and the store."""
        return self.x, self.v, self.s

    def split(self, size: int) -> list[Integers]:
        """Views of them, ``size`` elements each, the last one shorter."""
        return [Integers(*parts) for parts in zip(*(part.split(size) for part in self.tensors), strict=True)]

    def pieces(self) -> Iterator[tuple[slice, Integers]]:
        """Views of them in pieces of which copies are small, and where each lies; none where there are no elements."""
        size = piece_of(self.size)
        if 0 < self.size <= size:
            yield slice(0, self.size), self
        elif self.size:
            for index, piece in enumerate(self.split(size)):
                yield slice(index * size, index * size + piece.size), piece

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, v and s (see `Plane.read`)."""
        return self.x.read(), self.v.read(), self.s.read()

    def write(self, x: Tensor, v: Tensor, s: Tensor) -> None:
        """Keep x, v and s."""
        for plane, value in zip(self.planes, (x, v, s), strict=True):
            plane.write(value)

    def clone(self) -> Integers:
        """The same in new memory."""
        return Integers(*(part.clone() for part in self.tensors))


def piece_of(size: int) -> int:
    """Elements of a piece of ``size`` elements: a multiple of what is packed together."""
    return max(PIECE, -(-size // (MOST_PIECES * 1024)) * 1024)
