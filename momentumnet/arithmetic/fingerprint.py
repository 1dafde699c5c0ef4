"""Fingerprints of what a module returned: whether a recompute has given the same bits in the same places."""

from __future__ import annotations

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
    return [_checksum(leaf.detach()) for leaf in leaves]


def _checksum(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    bits = Layout.of(tensor).flat(tensor.resolve_neg()).view(_BITS[tensor.element_size()])
    if bits.element_size() < 4:
        bits = bits.to(torch.int32)
    report = bits.new_zeros(2)
    selection.for_tensor(bits).checksum(Integers(bits, bits, bits), report)
    return report
