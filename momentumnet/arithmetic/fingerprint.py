"""Fingerprints of tensors: whether a recompute has given the same bits in the same places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.compiled import selection
from momentumnet.arithmetic.layout import Layout
from momentumnet.arithmetic.planes import Integers

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(output: Any) -> list[Tensor]:
    """A report for each tensor of the output; its second value is the `fixed_point.checksum` of the bits.

    Values that change places change it, too. It lies on the tensor's device, unread.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.layout == torch.strided]
    return [_checksum(_flat_bits(leaf)) for leaf in leaves]


def joint_fingerprint(tensors: Iterable[Tensor]) -> list[Tensor]:
    """One report for all 1-D tensors that share a device and a type, in order: two launches for many."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
    joined = [torch.cat(group) if len(group) > 1 else group[0].contiguous() for group in groups.values()]
    return [_checksum(_bits(tensor)) for tensor in joined]


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
