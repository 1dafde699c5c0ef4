"""The low bits of integers, put aside and put back: where a state is made coarser on its way."""

from __future__ import annotations

import torch
from torch import Tensor


def split_low_bits(value: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``(high, low)`` with ``value == high * 2**bits + low``, for ``bits`` >= 1.

    ``high`` is ``value / 2**bits`` rounded to the nearest integer, half to even; ``low`` comes in the smallest type
    that holds it.
    """
    if bits >= 8 * value.element_size() - 1:
        return torch.zeros_like(value), value.clone()
    odd = (value >> bits).bitwise_and_(1)
    high = odd.add_(value).add_((1 << (bits - 1)) - 1).bitwise_right_shift_(bits)
    low = high << bits
    torch.sub(value, low, out=low)
    kinds = ((7, torch.int8), (15, torch.int16), (31, torch.int32), (63, torch.int64))
    return high, low.to(next(dtype for most, dtype in kinds if bits <= most))


def join_low_bits(high: Tensor, low: Tensor, bits: int) -> Tensor:
    """The inverse of `split_low_bits`."""
    if bits >= 8 * high.element_size() - 1:
        return low.clone()
    return (high << bits).add_(low)


def pack_low_bits(first: Tensor, second: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Two results of `split_low_bits` in one byte an element, where ``bits`` <= 3; as they are otherwise."""
    half = 1 << (bits - 1)
    base = 2 * half + 1  # low bits lie in [-half, half]
    if base * base > 256:
        return first, second
    return ((first + half).to(torch.uint8).mul_(base).add_((second + half).to(torch.uint8)),)


def unpack_low_bits(packed: tuple[Tensor, ...], bits: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_low_bits`."""
    if len(packed) == 2:
        return packed[0], packed[1]
    half = 1 << (bits - 1)
    base = 2 * half + 1
    first = torch.div(packed[0], base, rounding_mode="floor")
    second = packed[0] - first * base
    return first.to(torch.int8).sub_(half), second.to(torch.int8).sub_(half)
