"""memcnn's ``InvertibleModuleWrapper`` around its ``AdditiveCoupling``."""

from __future__ import annotations

from collections.abc import Sequence

import memcnn
import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Couplings of two branches each, ``b <- b + F(a); a <- a + G(b)``, both streams starting as the input."""

    def __init__(self, branches: Sequence[nn.Module], *, stored: bool) -> None:
        super().__init__()
        pairs = zip(branches[0::2], branches[1::2], strict=True)
        # memcnn computes y1 = x1 + F(x2), y2 = x2 + G(y1): the first half is the stream that moves first.
        self.couplings = nn.Sequential(
            *[
                memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(first, second), disable=stored)
                for first, second in pairs
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.couplings(torch.cat([x, x], dim=1))
        return output


def build(branches: Sequence[nn.Module], gamma: None, stored: bool) -> nn.Module:
    """The additive rule at an even depth; its own backward pass inverts each coupling."""
    return Network(branches, stored=stored)
