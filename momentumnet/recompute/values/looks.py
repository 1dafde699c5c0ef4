"""How saved tensors are looked at: some of their values or all, in as few passes as there can be."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from momentumnet.arithmetic.fingerprint import fingerprint, joint_fingerprint, joint_norm, values_of

# Values of a sample.
SAMPLE = 256
# Tensors up to these bytes are looked at together, larger ones each in a pass of its own.
SMALL = 1 << 18
_PLAIN = frozenset({Tensor, nn.Parameter, FakeTensor})

# What a recompute saves again: shape and type. Of a nested tensor the shape of all its parts in a row.
Kind = tuple[torch.Size, torch.dtype]


def kind_of(tensor: Tensor) -> Kind:
    """The kind of a saved tensor."""
    return (values_of(tensor) if tensor.is_nested else tensor).shape, tensor.dtype


class Look(enum.Enum):
    """How a saved tensor is looked at."""

    NOT = enum.auto()
    WHOLE = enum.auto()
    SAMPLE = enum.auto()  # of values in a grid
    SAMPLE_IN_ORDER = enum.auto()  # of a contiguous tensor, which is cheaper


class Views:
    """Parts of saved tensors that are looked at together, at the run's end.

    Args:
        exact: as in `SavedValues`.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._small: dict[int, list[Tensor]] = {}
        self._large: dict[int, list[Tensor]] = {}

    def add(self, number: int, tensor: Tensor, look: Look) -> None:
        """Have a part of the detached tensor, or the whole of it, looked at."""
        for part in _parts(tensor):
            if look is Look.WHOLE and self._exact and part.numel() * part.element_size() > SMALL:
                self._large.setdefault(number, []).extend(fingerprint(part))
            elif part.numel():
                self._small.setdefault(number, []).append(_view(part, look))

    def forget(self, number: int) -> None:
        """It needs no look."""
        self._small.pop(number, None)
        self._large.pop(number, None)

    def without_memory(self) -> list[int]:
        """The small ones whose memory is gone."""
        return [number for number, views in self._small.items() if any(map(has_lost_its_memory, views))]

    def reports(self) -> list[Tensor]:
        """One report for each large tensor, one for all small ones of a kind."""
        small = [view for number in sorted(self._small) for view in self._small[number]]
        large = [report for number in sorted(self._large) for report in self._large[number]]
        self._small = {}
        return [*large, *(joint_fingerprint(small) if self._exact else joint_norm(small))]


def twin_without_memory(tensor: Tensor) -> Tensor:
    """Shares the in-place counter, and holds no large memory: its data are others, as only `data` lets them be."""
    twin = tensor.detach()
    if type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_nested and tensor.nbytes > SMALL:
        twin.data = tensor.new_empty(0)
    return twin


def has_lost_its_memory(tensor: Tensor) -> bool:
    """Whether its storage has been emptied: of a parameter whose module FSDP shards by itself, when that has run."""
    plain = type(tensor) in _PLAIN and tensor.layout == torch.strided
    return plain and tensor.numel() > 0 and not tensor.untyped_storage().nbytes()


def _view(part: Tensor, look: Look) -> Tensor:
    """The values to be looked at, 1-D."""
    if look is Look.WHOLE:
        return part.reshape(-1)
    if look is Look.SAMPLE_IN_ORDER:
        count = min(part.numel(), SAMPLE)
        part = part.contiguous()
        return part.as_strided((count,), (part.numel() // count,), part.storage_offset())
    most = max(1, int(SAMPLE ** (1 / max(part.dim(), 1))))
    counts = [min(size, most) for size in part.shape]
    strides = [stride * (size // count) for stride, size, count in zip(part.stride(), part.shape, counts, strict=True)]
    return part.as_strided(counts, strides, part.storage_offset()).reshape(-1)


def sample_of(tensor: Tensor) -> Look:
    """The cheaper way to a sample of its values."""
    return Look.SAMPLE_IN_ORDER if tensor.layout == torch.strided and tensor.is_contiguous() else Look.SAMPLE


def _parts(tensor: Tensor) -> list[Tensor]:
    """The strided tensors of which it consists."""
    if tensor.is_nested and tensor.layout == torch.strided:
        return [values_of(tensor)]
    if type(tensor) in _PLAIN and tensor.layout == torch.strided:
        return [tensor]
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()  # some PyTorch versions name more than tensors there (a DeviceMesh)
        held = [getattr(wrapper, name) for name in names]
        return [part for value in held if isinstance(value, Tensor) for part in _parts(value.detach())]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.as_subclass(Tensor)]
