"""Objects that blocks are given and append to, and such blocks, with rows for them."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models import WIDTH, ResidualMLP


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


class Store:
    """Keys, appended to, as caches in decoders are."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}

    def update(self, layer: int, key: Tensor) -> Tensor:
        before = self.keys.get(layer)
        self.keys[layer] = key if before is None else torch.cat([before, key])
        return self.keys[layer]


class Cache(Store):
    """A cache by its name."""


class Memory(Store):
    """Not named as a cache."""


class Uncopyable(Store):
    def __copy__(self) -> Store:
        raise TypeError("no copies")


class Cached(ResidualMLP):
    def forward(self, x: Tensor, cache: Store) -> Tensor:
        return x + torch.tanh(self.inner(x) * cache.update(id(self), x))


class Reminded(ResidualMLP):
    def forward(self, x: Tensor, memory: Store) -> Tensor:
        return x + torch.tanh(self.inner(x) * memory.update(id(self), x))
