"""``torch.utils.checkpoint`` around every branch of the momentum rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Rule(nn.Module):
    """The momentum rule, its branches checkpointed or not."""

    def __init__(self, branches: Sequence[nn.Module], gamma: float, *, stored: bool) -> None:
        super().__init__()
        self.branches, self.gamma, self.stored = nn.ModuleList(branches), gamma, stored

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for branch in self.branches:
            f = branch(x) if self.stored else checkpoint(branch, x, use_reentrant=False)
            v = self.gamma * v + (1 - self.gamma) * f
            x = x + v
        return x


def build(branches: Sequence[nn.Module], gamma: float, stored: bool) -> nn.Module:
    """The momentum rule; its own backward pass computes every branch again from its stored input."""
    return Rule(branches, gamma, stored=stored)
