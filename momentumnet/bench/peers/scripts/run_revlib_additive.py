"""revlib's ``ReversibleSequential`` as it comes: the additive coupling of two streams."""

from __future__ import annotations

from collections.abc import Sequence

import revlib
import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Both streams start as the input."""

    def __init__(self, branches: Sequence[nn.Module], *, stored: bool) -> None:
        super().__init__()
        mode = revlib.MemoryModes.no_savings if stored else revlib.MemoryModes.autograd_function
        self.sequential = revlib.ReversibleSequential(*branches, memory_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.sequential(torch.cat([x, x], dim=1))
        return output


def build(branches: Sequence[nn.Module], gamma: None, stored: bool) -> nn.Module:
    """The additive rule; its own backward pass is revlib's default, ``MemoryModes.autograd_function``."""
    return Network(branches, stored=stored)
