"""The networks of ``bench couplings``: one transformer on digits, by each rule."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.conversion.conversion import convert
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.reversible_sequential import ReversibleSequential

WIDTH, HEADS, PIXELS = 32, 4, 8
REFERENCE = "stored"


class Attention(nn.Module):
    """Of the normalised rows of an image to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x)
        mixed: Tensor = self.inner(rows, rows, rows, need_weights=False)[0]
        return mixed


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.branch(x)
        return output


class Rows(nn.Module):
    """A pre-norm transformer whose tokens are the rows of an image.

    Args:
        layers: Pairs of attention and MLP, each a residual block of its own.
        classes: Of the head.
    """

    def __init__(self, layers: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * PIXELS, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(PIXELS, WIDTH))
        self.blocks: nn.Module = nn.Sequential(
            *(Residual(branch) for _ in range(layers) for branch in (Attention(), _mlp()))
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.blocks(self.embed(images.permute(0, 2, 1, 3).flatten(2)) + self.place)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Halves(nn.Module):
    """The additive coupling of the same branches: x in both halves at the start, their mean at the end."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.stream = ReversibleSequential(*branches, split_dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stream(torch.cat([x, x], -1)).chunk(2, -1)
        return (first + second) / 2


@dataclass(frozen=True)
class Method:
    """A rule.

    Attributes:
        bits: That a block takes of each element; None where its activations are stored.
        apply: The network by this rule, from the network and an example.
    """

    bits: float | None
    apply: Callable[[Rows, Tensor], nn.Module]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


def _converted(factor: Fraction, **options: Any) -> Method:
    """By `momentumnet.convert`; ``factor`` is what a step multiplies the older of its two tensors with."""

    def apply(net: Rows, example: Tensor) -> nn.Module:
        return convert(net, example, backward="reversible", **options)

    return Method(math.log2(1 / factor), apply)


def _dr2net(alpha: Fraction, beta: Fraction) -> Method:
    return _converted(beta, coupling=Dr2Net(alpha=alpha, beta=beta))


def _additive(net: Rows, example: Tensor) -> nn.Module:
    found = copy.deepcopy(net)
    found.blocks = Halves([block.branch for block in found.blocks.children() if isinstance(block, Residual)])
    return found


_EIGHTH, _SMALL = Fraction(1, 8), Fraction(1, 64)
METHODS = {
    REFERENCE: Method(None, lambda net, example: copy.deepcopy(net)),
    "momentum, gamma 1/8": _converted(_EIGHTH, gamma=_EIGHTH),
    "momentum, gamma 1/64": _converted(_SMALL, gamma=_SMALL),
    "BDIA": _converted(Fraction(1, 2), coupling="bdia"),
    "Dr2Net, 1 and 1/64": _dr2net(Fraction(1), _SMALL),
    "Dr2Net, 7/8 and 1/8": _dr2net(1 - _EIGHTH, _EIGHTH),
    "additive": Method(0.0, _additive),
}
