"""Residual blocks that stand alone, between changes of shape or behind a norm: streams of one, recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.memory import measure_memory
from tests.contract.reference import assert_same, loss_of, train_step
from tests.tally import Tally

WIDTH, WIDE = 8, 12


class Block(nn.Module):
    """A branch much wider than the stream, with dropout and a norm that measures its batch; counts its calls."""

    def __init__(self, width: int, *, factor: int = 6) -> None:
        super().__init__()
        inner = factor * width
        self.branch = nn.Sequential(
            nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.GELU(), nn.Dropout(0.2), nn.Linear(inner, width)
        )
        self.calls = Tally([0])  # so that recomputes count

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x + self.branch(x)


class Postnorm(Block):
    """The norm stands behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(super().forward(x)))


class Pyramid(nn.Module):
    """Stages of three blocks, of one, and of two, with a change of width before each but the first."""

    def __init__(self, block: Callable[[int], nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Sequential(block(WIDTH), block(WIDTH), block(WIDTH))
        self.widen = nn.Linear(WIDTH, WIDE)
        self.lone = block(WIDE)
        self.narrow = nn.Linear(WIDE, WIDTH)
        self.last = nn.Sequential(block(WIDTH), block(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.narrow(self.lone(self.widen(self.first(x)))))
        return y


class Decoder(nn.Module):
    """Layers behind each of which one norm stands, which all of them share, as in a DETR with auxiliary losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(WIDTH), Block(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList(Block(WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.encoder(x), []
        for layer in self.layers:
            x = self.norm(layer(x))
            found.append(x)
        return torch.stack(found)


def rows(count: int = 10) -> tuple[Tensor]:
    torch.manual_seed(5)
    return (torch.randn(count, WIDTH),)


def built(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(6)
    return model()


MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, ...]]]] = {
    "between changes of shape": (Pyramid, [("lone",)]),
    "post-norm": (lambda: Pyramid(Postnorm), [("lone",)]),
    "behind a shared norm": (Decoder, [("layers.0",), ("layers.1",), ("layers.2",)]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("final_velocity", ["flush", "drop"])
def test_gradients_equal_stored(name: str, final_velocity: str) -> None:
    model, lone = built(MODELS[name][0]), MODELS[name][1]
    assert mn.plan(model, rows()).recomputed == lone
    stored, net = (
        mn.convert(model, rows(), backward=backward, final_velocity=final_velocity) for backward in ("stored", "auto")
    )
    assert_same(train_step(net, rows()), train_step(stored, rows()), tolerance=0.0)
    calls = {name: module.calls[0] for name, module in net.named_modules() if isinstance(module, Block)}
    assert {calls[block] for (block,) in lone} == {2}


@pytest.mark.parametrize("options", [{"backward": "stored"}, {"gamma": 0}], ids=["stored", "gamma 0"])
def test_nothing_is_recomputed_where_activations_are_stored(options: dict[str, Any]) -> None:
    net = mn.convert(built(Pyramid), rows(), **options)
    train_step(net, rows())
    assert net.lone.calls[0] == 1


def test_the_plan_tells_the_bytes() -> None:
    model = built(Pyramid)
    plan = mn.plan(model, rows(4000))
    net = mn.convert(model, rows(4000))
    loss_of(net(*rows(4000))).backward()
    before, after = (
        measure_memory(lambda network=network: loss_of(network(*rows(4000)))).saved_bytes for network in (model, net)
    )
    output = rows(4000)[0].nbytes  # which the loss keeps
    assert plan.saved_after + output == pytest.approx(after, rel=0.05)
    assert after < before - 0.8 * next(stage.saving for stage in plan.discovery.blocks if stage.names == ("lone",))
    assert "lone" in str(plan)


def test_one_that_keeps_most_of_the_network_is_left() -> None:
    """Its recompute would hold all of it again."""
    model = nn.Sequential(
        Block(WIDTH, factor=1), Block(WIDTH, factor=1), nn.Linear(WIDTH, WIDE), Block(WIDE, factor=64)
    )
    assert mn.plan(model, rows()).recomputed == []


def test_only_below_the_containers_that_are_named() -> None:
    assert mn.plan(built(Pyramid), rows(), streams=["first"]).recomputed == []


def test_one_that_overwrites_its_input_is_left() -> None:
    model = built(Pyramid)
    model.lone.branch.insert(0, nn.Dropout(0.2, inplace=True))
    assert mn.plan(model, rows()).recomputed == []


def test_memory_to_spare_keeps_it() -> None:
    model = built(Pyramid)
    net = mn.convert(model, rows(), spare=2**30)
    train_step(net, rows())
    assert [block.calls[0] for block in (*net.first, net.lone, *net.last)] == [1] * 6


def test_a_description_has_it() -> None:
    model = built(Pyramid)
    net = mn.convert(model, rows())
    again = mn.convert(built(Pyramid), like=mn.describe(net))
    train_step(again, rows())
    assert again.lone.calls[0] == 2
    assert mn.plan(mn.revert(net), rows()).recomputed == [("lone",)]
