"""What stands on a block's modules is looked through once, not in each call: for a small block that is much time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.attributes import inventory


class Normed(nn.Module):
    """Batch norms, which are called through something else in a recompute, with their buffers in another table."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[inventory.Inventory]:
    """The inventories that are made from now on."""
    found: list[inventory.Inventory] = []
    make = inventory._inventory
    monkeypatch.setattr(inventory, "_inventory", lambda standing: found.append(make(standing)) or found[-1])
    return found


@pytest.mark.parametrize("block", [Normed, Plain])
def test_an_inventory_is_made_once_for_forward_and_once_for_recomputes(
    block: Callable[[], nn.Module], made: list[inventory.Inventory]
) -> None:
    x = torch.randn(3, 2, 4, 4)
    net = mn.convert(nn.Sequential(*(block() for _ in range(3))), x, gamma=0.5)
    for _ in range(2):
        net(x).sum().backward()
    assert made
    made.clear()
    for _ in range(3):
        net(x).sum().backward()
    assert made == []


def test_an_attribute_that_comes_is_seen(made: list[inventory.Inventory]) -> None:
    x = torch.randn(3, 2, 4, 4)
    net = mn.convert(nn.Sequential(*(Plain() for _ in range(3))), x, gamma=0.5)
    net(x).sum().backward()
    made.clear()
    net[1].inner[0].scale = 2.0
    net(x).sum().backward()
    assert len(made) == 1
    del net[1].inner[0].scale
    net(x).sum().backward()
    assert len(made) == 1  # the one of before is known still
