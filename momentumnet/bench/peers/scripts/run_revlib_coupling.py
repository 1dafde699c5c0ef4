"""revlib's ``ReversibleSequential`` with the momentum coupling of its README."""

from __future__ import annotations

from collections.abc import Sequence

import revlib
import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Two streams, v and x, started as zero and the input; x is the output."""

    def __init__(self, branches: Sequence[nn.Module], gamma: float, *, stored: bool) -> None:
        super().__init__()
        mode = revlib.MemoryModes.no_savings if stored else revlib.MemoryModes.autograd_function
        self.sequential = revlib.ReversibleSequential(
            *[layer for branch in branches for layer in (branch, nn.Identity())],
            coupling_forward=[
                lambda other, f: other * gamma + f * (1 - gamma),
                revlib.additive_coupling_forward,
            ],
            coupling_inverse=[
                lambda output, f: (output - f * (1 - gamma)) / gamma,
                revlib.additive_coupling_inverse,
            ],
            memory_mode=mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.sequential(torch.cat([torch.zeros_like(x), x], dim=1))
        return output.chunk(2, dim=1)[1]


def build(branches: Sequence[nn.Module], gamma: float, stored: bool) -> nn.Module:
    """The momentum rule; its own backward pass is revlib's default, ``MemoryModes.autograd_function``."""
    return Network(branches, gamma, stored=stored)
