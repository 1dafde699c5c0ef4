"""Networks of residual blocks called in several ways, and what can go of them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.prune import apply_masks
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.structured.blocks import BlockStructure
from tests.prune.structured.structured_nets import images, network


class Block(nn.Module):
    """x + f(x), or something alike."""

    def __init__(self, kind: str = "plain", width: int = 6) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, scale: float = 1.0, *, side: Tensor | None = None) -> Any:
        branch = self.fc(torch.tanh(x)) * scale + (0 if side is None else self.fc(side))
        if self.kind == "post-norm":
            return self.norm(x + branch)
        if self.kind == "relu":
            return F.relu(x + branch)
        if self.kind == "factor":
            return self.gain * x + branch
        if self.kind == "tuple":
            return x + branch, None
        return x + branch


class Net(nn.Module):
    """Three blocks called in some way."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block(kind) for _ in range(3)])
        if kind == "shared":
            self.blocks[1].fc.weight = self.stem.weight
        if kind == "one module":
            self.blocks = nn.ModuleList([self.blocks[0]] * 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.kind == "arguments":
                x = block(x, 0.5, side=torch.ones_like(x))
            elif self.kind == "keyword":
                x = block(side=None, x=x)
            elif self.kind == "tuple":
                x = block(x)[0]
            else:
                x = block(x)
        return self.head(x) + (self.blocks[1].fc.bias[:5] if self.kind == "read inside" else 0)


def vectors(seed: int = 0) -> Tensor:
    return torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def net_of(kind: str) -> Net:
    torch.manual_seed(0)
    return Net(kind).double()


@functools.cache
def resnet_structure() -> BlockStructure:
    return BlockStructure(network("resnet20"), images(size=2))


def masked(net: nn.Module, masks: Masks) -> nn.Module:
    own = copy.deepcopy(net)
    apply_masks(own, masks)
    return own
