"""revlib's ``momentum_net``, which scales the streams so that its additive coupling computes the momentum rule."""

from __future__ import annotations

from collections.abc import Sequence

import revlib
import revlib.utils
import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Its second stream is x divided by gamma to the power of the depth; both start as the input, which is v = 0."""

    def __init__(self, branches: Sequence[nn.Module], gamma: float, *, stored: bool) -> None:
        super().__init__()
        mode = revlib.MemoryModes.no_savings if stored else revlib.MemoryModes.autograd_function
        self.sequential = revlib.utils.momentum_net(*branches, beta=gamma, memory_mode=mode)
        self.scale = gamma ** len(branches)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.sequential(torch.cat([x, x], dim=1))
        return output.chunk(2, dim=1)[1] * self.scale


def build(branches: Sequence[nn.Module], gamma: float, stored: bool) -> nn.Module:
    """The momentum rule; its own backward pass is revlib's default, ``MemoryModes.autograd_function``."""
    return Network(branches, gamma, stored=stored)
