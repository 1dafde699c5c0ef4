"""What blocks write to in place: tensors in containers, NumPy's arrays, and random generators of their own."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.left.keeping import OPTIONS, WIDTH, Block, Standing, assert_as_stored, network, standing_in


class Averaged(Standing):
    """Averages by name, one of them on an attribute, too, and a state in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(WIDTH)
        self.state = {"mean": self.mean, "calls": [torch.zeros((), dtype=torch.int64)]}
        self.pair = (torch.zeros(WIDTH), "newest")

    def kept(self, y: Tensor) -> Any:
        self.state["mean"].mul_(0.9).add_(y.mean(0))
        self.state["calls"][0] += 1
        self.pair[0].copy_(y[0])
        return self.mean.clone() + 0.1 * self.state["calls"][0] + self.pair[0].clone()

    def standing(self) -> list[Any]:
        return [*self.mean.tolist(), int(self.state["calls"][0]), *self.pair[0].tolist()]


class Named(NamedTuple):
    mean: Tensor
    calls: list[int]


class ByName(Standing):
    def __init__(self) -> None:
        super().__init__()
        self.state = Named(torch.zeros(WIDTH), [0])

    def kept(self, y: Tensor) -> Any:
        self.state.mean.add_(y.mean(0))
        self.state.calls[0] += 1
        return self.state.mean.clone() * self.state.calls[0]

    def standing(self) -> list[Any]:
        return [*self.state.mean.tolist(), *self.state.calls]


class InArrays(Standing):
    def __init__(self) -> None:
        super().__init__()
        self.counts, self.state = np.zeros(2), {"means": np.zeros(WIDTH)}

    def kept(self, y: Tensor) -> Any:
        self.counts[0] += 1
        self.state["means"] += y.mean(0).numpy()
        return float(self.counts[0] + self.state["means"].sum())

    def standing(self) -> list[Any]:
        return [*self.counts, *self.state["means"]]


class Drawing(Standing):
    """Draws from generators of its own, as layers are dropped by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.others = [random.Random(1), np.random.default_rng(2), np.random.RandomState(3)]

    def kept(self, y: Tensor) -> Any:
        own, new, old = self.others
        return torch.rand(WIDTH, generator=self.generator) + own.random() + new.random() + old.rand()

    def standing(self) -> list[Any]:
        own, new, old = self.others
        return [self.generator.get_state().tolist(), own.getstate(), new.bit_generator.state, repr(old.get_state())]


@pytest.mark.parametrize("kind", [Averaged, ByName, InArrays, Drawing])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_written_is_seen_and_written_as_with_stored_activations(
    kind: type[Standing], options: dict[str, Any]
) -> None:
    assert_as_stored(kind, options, standing_in)


def test_a_pass_that_is_played_again_writes_once() -> None:
    class Growing(Averaged):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    found = []
    for backward in ("stored", "reversible"):
        torch.manual_seed(0)
        net, x = nn.Sequential(*(Block(Growing) for _ in range(4))), torch.randn(4, WIDTH)
        net = mn.convert(net, x, backward=backward)
        for factor in (1.0, 1e4, 1.0):
            net[1].branch.factor = factor
            net(x).sum().backward()
        found.append([block.branch.standing() for block in net])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_a_large_tensor_in_a_container_is_seen_from_the_second_call_on_that_writes() -> None:
    class Large(Standing):
        def __init__(self) -> None:
            super().__init__()
            self.state = {"counts": torch.zeros(2000)}

        def kept(self, y: Tensor) -> Any:
            self.state["counts"] += 1
            return 0.0

    model, x = network(Large)
    net = mn.convert(model, x)
    net(x).sum().backward()
    before = [float(module.state["counts"][0]) for module in net.modules() if isinstance(module, Large)]
    for _ in range(3):
        net(x).sum().backward()
    after = [float(module.state["counts"][0]) for module in net.modules() if isinstance(module, Large)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3.0] * len(before)
