"""Blocks that draw from a random generator that they are given, alone or in something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.branches import WIDTH
from tests.contract.reference import assert_same, train_step


class Counting(random.Random):
    """Has more than a state: how often it was asked."""

    count = 0

    def random(self) -> float:
        self.count += 1
        return super().random()


WAYS = [{"backward": "reversible"}, {"backward": "checkpointed"}, {"backward": "reversible", "others": "checkpoint"}]
GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "Python": lambda: random.Random(3),
    "of a class of its own": lambda: Counting(3),
    "NumPy": lambda: np.random.default_rng(3),
    "NumPy's older one": lambda: np.random.RandomState(3),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda generator: generator,
    "in a list": lambda generator: [generator],
    "in an object": lambda generator: SimpleNamespace(inner={"own": generator}),
}


def draw(given: Any) -> float | Tensor:
    if isinstance(given, list):
        return draw(given[0])
    if isinstance(given, SimpleNamespace):
        return draw(given.inner["own"])
    if isinstance(given, torch.Generator):
        return torch.rand((), generator=given)
    return float(given.random() if hasattr(given, "random") else given.random_sample())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return x + (1 + draw(given)) * torch.tanh(self.layer(x))


class Network(nn.Module):
    def __init__(self, make: Callable[[], Any], place: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.blocks = Block(), nn.ModuleList(Block() for _ in range(4))
        self.between = nn.Linear(WIDTH, WIDTH)
        self.make, self.place = make, place

    def forward(self, x: Tensor) -> Tensor:
        self.generator = self.make()
        x = self.between(self.first(x, self.place(self.generator)))
        for block in self.blocks:
            x = block(x, self.place(self.generator))
        return x


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_recompute_draws_what_its_forward_drew(kind: str, place: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Network(GENERATORS[kind], PLACES[place]), torch.randn(3, WIDTH)
    steps, drawn, asked = [], [], []
    for given in ({"backward": "stored"}, options):
        net = mn.convert(model, x, **given)
        # The last one outgrows its scale, and is played again.
        steps.append([train_step(net, (factor * x,)) for factor in (1, 1, 1e6)])
        drawn.append(draw(net.generator))
        asked.append(getattr(net.generator, "count", 0))
    for expected, got in zip(*steps, strict=True):
        assert_same(got, expected)
    assert float(drawn[0]) == float(drawn[1])
    assert asked[0] == asked[1]
