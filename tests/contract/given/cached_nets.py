"""Key-value caches, and networks whose blocks are handed one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn

WIDTH, LENGTH, BLOCKS = 8, 6, 4


class Layer:
    def __init__(self) -> None:
        self.keys: Tensor | None = None


class KeyCache:
    """Keys by layer, which grow by concatenation, as in transformers' DynamicCache."""

    def __init__(self, count: int = BLOCKS) -> None:
        self.layers = [Layer() for _ in range(count)]

    def update(self, index: int, keys: Tensor) -> Tensor:
        layer = self.layers[index]
        layer.keys = keys if layer.keys is None else torch.cat([layer.keys, keys], dim=1)
        return layer.keys


class Attention(nn.Module):
    """x + attention over what the cache gives."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        keys = self.key(x)
        if cache is not None:
            keys = cache.update(self.index, keys)
        weights = torch.softmax(self.query(x) @ keys.transpose(1, 2), dim=-1)
        return x + torch.tanh(weights @ keys)


class Decoder(nn.Module):
    """Blocks that are handed what ``make`` makes, or what the caller gives."""

    def __init__(self, make: Callable[[], Any], block: Callable[[int], nn.Module] = Attention) -> None:
        super().__init__()
        self.make = make
        self.layers = nn.ModuleList(block(index) for index in range(BLOCKS))
        self.given: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.given = self.make()
        for layer in self.layers:
            x = layer(x, cache=self.given)
        return x


class OtherName(Decoder):
    """The same, under a name that tells nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.given = self.make()
        for layer in self.layers:
            x = layer(x, self.given)
        return x


class Notebook(KeyCache):
    """Neither its class nor its keyword says that it is a cache."""


def tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, LENGTH, WIDTH)


def both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model converted twice: stored and reversible."""
    return mn.convert(model, tokens(), backward="stored"), mn.convert(model, tokens())
