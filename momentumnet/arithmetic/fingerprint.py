"""Fingerprints of tensors: whether a recompute has given the same bits in the same places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from momentumnet.arithmetic import fixed_point as fp
from momentumnet.arithmetic.compiled import launching, libraries, selection
from momentumnet.arithmetic.layout import Layout
from momentumnet.arithmetic.planes import Integers

# Values of a tensor that are few enough for one look at several tensors, which takes them one by one; on a GPU they are
# shared out, and what there is beside is a copy of all and a launch more.
FEW, FEW_ON_CUDA = 1024, 1 << 18
# By type, the bits of a value as an int64.
_SIZES = {
    dtype: -1 if dtype.itemsize == 8 else (1 << 8 * dtype.itemsize) - 1
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    )
}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(output: Any) -> list[Tensor]:
    """A report for each tensor of the output; its second value is the `fixed_point.checksum` of the bits.

    Values that change places change it, too. It lies on the tensor's device, unread.
    """
    leaves = [values_of(leaf) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [_checksum(_flat_bits(leaf)) for leaf in leaves if leaf.layout == torch.strided]


def values_of(tensor: Tensor) -> Tensor:
    """The tensor itself; of a nested one, all of its parts in a row."""
    return tensor.detach().values() if tensor.is_nested else tensor


def joint_fingerprint(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Reports of 1-D tensors, together for those of a device: few launches for many."""
    few: dict[torch.device, list[Tensor]] = {}
    many: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if (
            tensor.numel() <= (FEW_ON_CUDA if tensor.is_cuda else FEW)
            and type(tensor) is Tensor
            and tensor.dtype in _SIZES
        ):
            few.setdefault(tensor.device, []).append(tensor)
        else:
            many.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
    looks = [
        _looked_at(device, group[start : start + libraries.PIECES])
        for device, group in few.items()
        for start in range(0, len(group), libraries.PIECES)
    ]
    joined = [torch.cat(group) if len(group) > 1 else group[0].contiguous() for group in many.values()]
    return [*looks, *(_checksum(_bits(tensor)) for tensor in joined)]


def look(values: Sequence[Tensor]) -> Tensor:
    """0, and the `fixed_point.checksum` of the bits of 1-D tensors; v counts the tensors. In plain operations."""
    bits = [
        value.contiguous().view(_BITS[value.element_size()]).to(torch.int64) & _SIZES[value.dtype] for value in values
    ]
    x, numbers = torch.cat(bits), torch.cat([torch.full_like(part, number) for number, part in enumerate(bits)])
    checksum = fp.checksum(x, numbers, torch.zeros_like(x))
    return torch.stack([torch.zeros_like(checksum), checksum])


def _looked_at(device: torch.device, values: Sequence[Tensor]) -> Tensor:
    return (look if libraries.of(device).library is None else launching.look)(values)


def joint_norm(tensors: Iterable[Tensor]) -> list[Tensor]:
    """One report for all 1-D tensors of a device: their Euclidean norm and 0, for comparison within a tolerance."""
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor.detach().to(torch.float32))
    norms = [torch.linalg.vector_norm(torch.cat(group)) for group in groups.values()]
    return [torch.stack([norm, torch.zeros_like(norm)]) for norm in norms]


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's own memory, read as integers; complex numbers as pairs."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj()).flatten()
    return tensor.resolve_neg().view(_BITS[tensor.element_size()])


def _flat_bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return _bits(Layout.of(tensor).flat(tensor))


def _checksum(bits: Tensor) -> Tensor:
    bits = _in_words(bits)
    report = bits.new_zeros(2)
    selection.for_tensor(bits).checksum(Integers(bits, bits, bits), report)
    return report


def _in_words(bits: Tensor) -> Tensor:
    """Integers of at least 32 bits: narrow ones are read several at a time, where their number allows it."""
    together = 4 // bits.element_size()
    if together <= 1:
        return bits
    if bits.numel() % together:
        return bits.to(torch.int32)
    if bits.storage_offset() % together:
        bits = bits.clone()
    return bits.view(torch.int32)
