"""Integers in fewer bytes: a state that waits for backward keeps only the bytes that its values need.

int32 values of at most 24 bits are kept as their low 16 bits and one byte above, of at most 16 bits as the low 16 bits
alone, and so on. The low bits are a cast, which wraps around, and they are put together again by bit operations: far
faster than copies through narrower views of the same memory, but for the byte above. Longer integers and integers that
need all four bytes stay as they are.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A 1-D int32 tensor in as few bytes an element as its range needs: its parts, low first."""

    parts: tuple[Tensor, ...]
    dtype: torch.dtype

    @property
    def bytes_per_element(self) -> int:
        """Sum over the parts."""
        return sum(part.element_size() for part in self.parts)

    def split(self, size: int) -> list[Packed]:
        """Views of it, ``size`` elements each, the last one shorter."""
        pieces = zip(*(part.split(size) for part in self.parts), strict=True)
        return [Packed(parts, self.dtype) for parts in pieces]

    def unpacked(self) -> Tensor:
        """The integers, in a new tensor (or the very tensor that was packed, if nothing could be saved)."""
        low = self.parts[0]
        if low.dtype == self.dtype:
            return low
        if len(self.parts) == 1:
            return low.to(self.dtype)
        value = self.parts[1].to(self.dtype).bitwise_left_shift_(16)
        return value.bitwise_or_(low.to(self.dtype).bitwise_and_(0xFFFF))


def as_it_is(value: Tensor) -> Packed:
    """The tensor in as many bytes as it has."""
    return Packed((value,), value.dtype)


def pack(value: Tensor, smallest: int, largest: int) -> Packed:
    """The 1-D tensor ``value``, whose integers lie in [smallest, largest], in few bytes.

    Only int32 on little-endian machines is packed; else the tensor itself is kept.

    Example:
        >>> packed = pack(torch.tensor([-70000, 5], dtype=torch.int32), -70000, 5)
        >>> packed.bytes_per_element, packed.unpacked().tolist()
        (3, [-70000, 5])
    """
    if value.dtype != torch.int32 or sys.byteorder != "little":
        return as_it_is(value)
    signed, bits = smallest < 0, max(largest.bit_length(), (-smallest - 1).bit_length() if smallest < 0 else 0)
    if bits + signed <= 8:
        return Packed((value.to(torch.int8 if signed else torch.uint8),), value.dtype)
    if bits + signed <= 16:
        low = value.to(torch.int16)
        return Packed((low if signed else low.view(torch.uint16),), value.dtype)
    if bits + signed <= 24:
        above = value.view(torch.int8 if signed else torch.uint8).view(-1, 4)[:, 2]
        return Packed((value.to(torch.int16), above.contiguous()), value.dtype)
    return as_it_is(value)
