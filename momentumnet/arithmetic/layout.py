"""Memory layout of a stream: its tensors seen as 1-D, in the order in which they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Shape and dense strides that all tensors of a stream share; others are copied into it."""

    shape: torch.Size
    stride: tuple[int, ...]
    device: torch.device
    contiguous: bool

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """The layout of ``x`` (channels last stays so), made dense where x is not."""
        dense = torch.empty_like(x, device="meta")
        return cls(x.shape, dense.stride(), x.device, dense.is_contiguous())

    def or_that_of(self, y: Tensor) -> Layout:
        """This very layout if ``y`` has it, made dense; else that of ``y``, which has the shape and the device."""
        if y.stride() == self.stride or (self.contiguous and y.is_contiguous()):
            return self
        other = Layout.of(y)
        return self if other.stride == self.stride else other

    def empty(self, dtype: torch.dtype) -> Tensor:
        """A new tensor of this layout."""
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.device)

    def flat(self, value: Tensor) -> Tensor:
        """``value`` as 1-D, in this layout's order: a view where it lies so, else of a copy."""
        if value.requires_grad or value.is_neg():
            value = value.detach().resolve_neg()
        if value.stride() != self.stride and not (self.contiguous and value.is_contiguous()):
            value = self.empty(value.dtype).copy_(value)
        return value.as_strided((self.shape.numel(),), (1,))


def is_dense(value: Tensor) -> bool:
    """Whether its elements lie side by side in memory, each once; a nested tensor's do in its parts."""
    return value.is_nested or Layout.of(value).stride == value.stride()


def lying_as(value: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """``value``, in memory as these strides say, made dense; as it is where they are None."""
    if stride is None or value.stride() == stride:
        return value
    dense = Layout.of(torch.empty_strided(value.shape, stride, device="meta")).stride
    return value if value.stride() == dense else value.new_empty_strided(value.shape, dense).copy_(value)
