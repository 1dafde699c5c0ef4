"""Buffers as tables and values: which tensor stands under which name, and what it holds; put aside, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

# Tensors, and their values.
Clones = list[tuple[list[Tensor], list[Tensor]]]
Table = dict[str, Tensor | None]

COPIED_ANYWAY = 1024  # a tensor of no more elements is copied without a reason
_NO_TABLE: Table = {}
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)


def tables_of(owners: Sequence[nn.Module]) -> list[Table]:
    """The buffers of each by name, not to be written to."""
    return [dict(owner._buffers.items()) if owner._buffers else _NO_TABLE for owner in owners]


def take_out(table: Table, names: Mapping[str, bool]) -> None:
    """Buffers that there were not are not there, and those that were None are None."""
    for name in [name for name in table.keys() if name not in names]:  # noqa: SIM118 (a script's table is no dict)
        del table[name]
    for name, was_none in names.items():
        if was_none:
            table[name] = None


def make_as(owners: Sequence[nn.Module], tables: Sequence[Table]) -> None:
    """The very tensors, in their order, stand under the same names again."""
    for owner, before in zip(owners, tables, strict=True):
        table = owner._buffers
        if not (table or before):
            continue
        if list(table.keys()) != list(before):
            table.clear()
            table.update(before)
        for name, buffer in before.items():
            if table[name] is not buffer:
                table[name] = buffer


def give(place: Tensor, value: Tensor) -> None:
    """The buffer has a value again, of whatever size: an observer takes its size from its first call."""
    if place.shape != value.shape:
        place.resize_(value.shape)
    place.data.copy_(value)


def clones_of(buffers: Iterable[Tensor]) -> Clones:
    """The buffers and their values. Those of one type and device together, which is one launch on a GPU.

    There, numbers of 4 and 8 bytes go together, too, as words: the statistics of norms and their counts.
    """
    groups: dict[object, list[Tensor]] = {}
    for buffer in buffers:
        apart, part = id(buffer), buffer.detach()
        if _goes_with_others(buffer):
            apart, part = 0, _words(part) if buffer.is_cuda else part
        groups.setdefault((part.dtype, part.device, apart), []).append(part)
    return [(own, _copies(own)) for own in groups.values()]


def _words(buffer: Tensor) -> Tensor:
    """The memory of its numbers as 32-bit words; itself where they are narrower, or do not lie side by side."""
    if buffer.element_size() < 4 or not buffer.is_contiguous():
        return buffer
    return buffer.reshape(-1).view(torch.int32)


def _copies(buffers: list[Tensor]) -> list[Tensor]:
    """Of the very bits: what adds 0 or multiplies by 1 does not keep those of -0 and NaN."""
    if len(buffers) == 1:
        return [buffers[0].clone()]
    values = [torch.empty_like(buffer) for buffer in buffers]
    torch._foreach_copy_(values, buffers)
    return values


def _goes_with_others(buffer: Tensor) -> bool:
    plain = type(buffer) is Tensor and buffer.layout == torch.strided and buffer.dtype in _NUMBERS
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(buffer)


def write_back(clones: Clones) -> None:
    """The buffers hold again what they held.

    Through .data: the in-place counter does not move, so graphs that saved a buffer stay valid.
    """
    for buffers, values in clones:
        if len(buffers) > 1:
            torch._foreach_copy_([buffer.data for buffer in buffers], values)
        else:
            buffers[0].data.copy_(values[0])
