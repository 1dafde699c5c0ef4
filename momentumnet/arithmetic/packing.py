"""Integers in fewer bits: a state that waits for backward keeps only the bits that its values need.

The low ``width`` bits of each int32 are its *field*. 1024 integers are a block, seen as 32 rows of 32 columns. A
column's 32 fields lie one behind the other, the first row's lowest, in ``width`` words of 32 bits; the k-th words of
all columns of a block lie together. So 32 columns, or as many as a vector has lanes, are shifted alike. The last block
of a tensor has only as many columns as it takes, zeros behind the last element: no more than 31 fields of padding.

The functions here are the reference for the native kernels (csrc/packing.h), which pack to the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from momentumnet.arithmetic.planes import Place, Plane

ROWS = COLUMNS = 32
BLOCK = ROWS * COLUMNS


@dataclass(frozen=True)
class Field:
    """The low ``width`` bits of an int32 (1 to 32); the highest of them is the sign where it is ``signed``."""

    width: int
    signed: bool

    @classmethod
    def of(cls, smallest: int, largest: int) -> Field:
        """The narrowest field for integers in [smallest, largest]."""
        signed = smallest < 0
        bits = max((~value if value < 0 else value).bit_length() for value in (smallest, largest))
        return cls(max(1, bits + signed), signed)


class Codec(Protocol):
    """What packs: `pack` and `unpack` of `momentum_step`, or the native kernels, which agree to the bit."""

    def pack(self, plane: Plane, field: Field) -> Tensor: ...

    def unpack(self, words: Tensor, plane: Plane, field: Field) -> None: ...


@dataclass(frozen=True)
class Packed:
    """A 1-D tensor of integers at rest: ``size`` fields in ``words``, or with no field the tensor itself."""

    words: Tensor
    size: int
    field: Field | None

    @property
    def bytes_per_element(self) -> float:
        """Of the fields alone, without the padding at the end."""
        return self.words.element_size() if self.field is None else self.field.width / 8

    def split(self, size: int) -> list[Packed]:
        """Views of it, ``size`` elements each, the last one shorter.

        Raises:
            ValueError: ``size`` is no number of whole blocks.
        """
        if size % BLOCK:
            raise ValueError(f"packed integers are split in multiples of {BLOCK}, got {size}")
        pieces = self.words.split(size if self.field is None else size // ROWS * self.field.width)
        return [Packed(piece, min(size, self.size - size * i), self.field) for i, piece in enumerate(pieces)]

    def unpacked(self, codec: Codec) -> Tensor:
        """The integers, in a new tensor (or the very tensor that was to be packed, if nothing could be saved)."""
        if self.field is None:
            return self.words
        value = self.words.new_empty(self.size)
        codec.unpack(self.words, Plane.whole(value), self.field)
        return value

    def unpack_to(self, plane: Plane, codec: Codec) -> None:
        """The integers into ``plane``."""
        if self.field is None:
            plane.write(self.words)
        else:
            codec.unpack(self.words, plane, self.field)


def as_it_is(plane: Plane) -> Packed:
    """The integers in as many bytes as they are read in."""
    return Packed(plane.read(), plane.size, None)


def at_rest(plane: Plane, smallest: int, largest: int, codec: Codec) -> Packed:
    """The integers of ``plane``, which lie in [smallest, largest], in few bits.

    Those of 64 bits are not packed, nor where that would not be smaller; the tensor itself is kept then.

    Example:
        ::

            value = torch.arange(-1000, 1000, dtype=torch.int32)
            at_rest(Plane.whole(value), -1000, 999, momentum_step).bytes_per_element    # 11 / 8
    """
    field, size = Field.of(smallest, largest), plane.size
    is_long = plane.place is Place.WHOLE and plane.tensors[0].dtype == torch.int64
    if is_long or words_for(size, field.width) >= size:
        return as_it_is(plane)
    return Packed(codec.pack(plane, field), size, field)


def words_for(size: int, width: int) -> int:
    """The number of words that ``size`` fields are packed to."""
    return -(-size // ROWS) * width


def pack(value: Tensor, field: Field) -> Tensor:
    """The words that hold the fields of the 1-D int32 tensor ``value``."""
    size, width = value.numel(), field.width
    words = value.new_zeros(words_for(size, width))
    whole = size - size % BLOCK
    _pack_blocks(value[:whole].view(-1, ROWS, COLUMNS), words[: words_for(whole, width)], width)
    if size > whole:
        last = torch.nn.functional.pad(value[whole:], (0, -size % ROWS))
        _pack_blocks(last.view(1, ROWS, -1), words[words_for(whole, width) :], width)
    return words


def unpack(words: Tensor, size: int, field: Field) -> Tensor:
    """``size`` int32 from the words that hold their fields."""
    columns = -(-size // ROWS)
    value = words.new_empty(columns * ROWS)
    whole = size - size % BLOCK
    _unpack_blocks(words[: words_for(whole, field.width)], value[:whole].view(-1, ROWS, COLUMNS), field)
    if size > whole:
        _unpack_blocks(words[words_for(whole, field.width) :], value[whole:].view(1, ROWS, -1), field)
    return value[:size]


def _pack_blocks(value: Tensor, words: Tensor, width: int) -> None:
    """``value`` (blocks, rows, columns) into ``words``, which are zero."""
    words = words.view(-1, width, value.shape[2])
    mask = (1 << width) - 1 if width < 32 else -1
    for row, (word, shift) in enumerate(_places(width)):
        fields = value[:, row] & mask
        words[:, word] |= fields << shift
        if shift + width > 32:
            words[:, word + 1] |= fields >> (32 - shift)


def _unpack_blocks(words: Tensor, value: Tensor, field: Field) -> None:
    """The inverse of `_pack_blocks`."""
    width, above = field.width, 32 - field.width
    words = words.view(-1, width, value.shape[2])
    for row, (word, shift) in enumerate(_places(width)):
        fields = words[:, word] >> shift
        if shift + width > 32:
            fields = (fields & ((1 << (32 - shift)) - 1)) | (words[:, word + 1] << (32 - shift))
        # The bits above a field are those of the next one, or copies of its sign.
        value[:, row] = (fields << above) >> above if field.signed or not above else fields & ((1 << width) - 1)


def _places(width: int) -> Iterator[tuple[int, int]]:
    """For each row, the word in which its field begins and at which bit."""
    return (divmod(row * width, 32) for row in range(ROWS))
