"""Attributes that are set between forward and backward, for another forward: recomputes go by those of their own."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.attributes.inventory import inventory_of
from momentumnet.recompute.attributes.settings import Settings
from momentumnet.recompute.attributes.standing import Standing
from tests.contract.reference import COUPLED


class Side(enum.Enum):
    LEFT = "left"
    RIGHT = "right"


class Block(nn.Module):
    """Goes by what is set on it: norms of a domain, adapters by name, a width, a flag, a side, a type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.norms = nn.ModuleList(nn.BatchNorm1d(6) for _ in range(2))
        self.adapters = nn.ModuleDict({name: nn.Linear(6, 6) for name in "ab"})
        self.domain, self.active, self.width = 0, ["a"], (6, 2)
        self.stops, self.side, self.dtype = False, Side.LEFT, torch.float32
        self.scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[self.domain](self.layer(x)).tanh()
        y = y + sum(self.adapters[name](y) for name in self.active)
        y = y * (torch.arange(6) < self.width[0])
        y = y.detach() * x if self.stops else y.to(self.dtype).float()
        y = y if self.side is Side.LEFT else y.flip(1)
        return x + (y if self.scale is None else self.scale * y)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(Block(), nn.Linear(6, 6))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.front(x))


def everywhere(**settings: Any) -> Callable[[nn.Module], None]:
    def set_them(model: nn.Module) -> None:
        for block in model.modules():
            if isinstance(block, Block):
                vars(block).update(settings)

    return set_them


def take_away(model: nn.Module) -> None:
    for block in model.modules():
        if isinstance(block, Block):
            del block.scale
            block.added = 0
            block.scale = 0.5


SETTINGS: dict[str, Callable[[nn.Module], None]] = {
    "domain": everywhere(domain=1),
    "adapters": everywhere(active=["b"]),
    "several adapters": everywhere(active=["a", "b"]),
    "width": everywhere(width=(3, 2)),
    "flag": everywhere(stops=True),
    "side": everywhere(side=Side.RIGHT),
    "type": everywhere(dtype=torch.bfloat16),
    "None": everywhere(scale=0.5),
    "taken away and set anew": take_away,
}


def settings_of(model: nn.Module) -> list[Any]:
    return [
        [getattr(block, name, None) for name in ("domain", "active", "width", "stops", "side", "dtype", "scale")]
        for block in model.modules()
        if isinstance(block, Block)
    ]


def gradients(options: dict[str, Any], change: Callable[[nn.Module], None]) -> Sequence[Tensor | None]:
    """Of two forwards with a change between them, and one backward behind both."""
    torch.manual_seed(0)
    model, x = Network(), torch.randn(5, 6, requires_grad=True)
    net = mn.convert(model, x, **options).train()
    torch.manual_seed(1)
    loss = net(x).square().sum()
    change(net)
    loss = loss + net(x.flip(0)).sin().sum()
    settings = settings_of(net)
    loss.backward()
    assert settings_of(net) == settings
    return [x.grad, *(parameter.grad for parameter in net.parameters()), *net.buffers()]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 1 / 8},
        {"gamma": 1 / 8, "backward": "checkpointed"},
        {"gamma": 1 / 8, "others": "checkpoint"},
        *COUPLED,
    ],
    ids=["reversible", "checkpointed", "others", "bdia", "dr2net"],
)
def test_gradients_are_those_of_stored_activations(options: dict[str, Any], setting: str) -> None:
    change = SETTINGS[setting]
    expected = gradients({**options, "backward": "stored", "others": "keep"}, change)
    got = gradients({"backward": "reversible", **options}, change)
    for value, right in zip(got, expected, strict=True):
        assert (value is None) == (right is None)
        if value is not None and right is not None:
            torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)


def test_what_a_later_block_sets_in_a_layer_of_all() -> None:
    """Each block has found it as the one before it has left it."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 1.0

    class Setting(nn.Module):
        def __init__(self, shared: Shared, factor: float | None) -> None:
            super().__init__()
            self.layer, self.shared, self.factor = nn.Linear(6, 6), shared, factor

        def forward(self, x: Tensor) -> Tensor:
            if self.factor is not None:
                self.shared.factor = self.factor
            return x + self.shared.factor * self.layer(x).tanh()

    torch.manual_seed(0)
    shared = Shared()
    net = nn.Sequential(*(Setting(shared, factor) for factor in (2.0, None, 0.5, None)))
    x, found = torch.randn(3, 6), []
    for backward in ("reversible", "stored"):
        converted = mn.convert(net, x, backward=backward)
        for _ in range(2):
            converted.zero_grad()
            converted(x).square().sum().backward()
        assert converted[0].shared.factor == 0.5
        found.append([parameter.grad for parameter in converted.parameters()])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "is_setting"), [(1024, True), (1025, False)])
def test_a_long_list_is_a_record_and_no_setting(count: int, is_setting: bool) -> None:
    """Each call would look at every entry: steps took ten times as long with a record of 300 000 numbers."""
    block, record = nn.Module(), [0] * count
    block.record = record
    before = Standing([block])
    settings = Settings(inventory_of(block, before)[0], before)
    block.record = [1] * count
    now = Standing([block])
    changes = list(settings.changes(inventory_of(block, now)[0], now))
    assert changes == ([(0, "record", record)] if is_setting else [])
