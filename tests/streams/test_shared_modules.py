"""Modules that are called in several places: the plan has no block that the first forward would refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ConversionError
from momentumnet.streams import discover, find_streams
from tests.contract.reference import assert_gradients_as_stored, assert_same, train_step
from tests.streams.nets import Block, Calls, ConcatHalves, chain, modules, tokens


class Around(Block):
    """A residual block that calls another one, which is not its own, first."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.shared(x))


def shared_inside(self: Any, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = block(x)
    x = self.shared(x)
    for block in self.tail:
        x = block(x)
    return x


def test_a_module_that_is_called_inside_blocks_too_is_no_block() -> None:
    torch.manual_seed(0)
    shared = Block()
    model = Calls(shared_inside, shared=shared, blocks=modules(2, lambda: Around(shared)), tail=modules(2))
    x = tokens()
    found = discover(model, x)
    assert [stream.blocks for stream in found.streams] == [("blocks.0", "blocks.1"), ("tail.0", "tail.1")]
    (rejection,) = [rejection for rejection in found.rejections if rejection.blocks == ("shared",)]
    assert "called in another place or order" in rejection.reason
    assert_gradients_as_stored(model, x, rtol=1e-6, atol=1e-8)


ORDERS = {
    "a shorter pass": lambda self, x: self.b(self.a(self.c(self.b(self.a(x))) * 2)),
    "a longer pass": lambda self, x: self.c(self.b(self.a(self.b(self.a(x)) * 2))),
    "another order": lambda self, x: self.a(self.b(self.b(self.a(x)) * 2)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_modules_that_are_called_in_two_orders_are_no_blocks(order: str) -> None:
    model = Calls(ORDERS[order], a=Block(), b=Block(), c=Block())
    with pytest.raises(ConversionError, match="called in another place or order"):
        mn.convert(model, tokens())


def test_a_module_that_is_called_alone_too_is_no_block() -> None:
    model = Calls(lambda self, x: self.a(self.c(self.b(self.a(x))) * 2), a=Block(), b=Block(), c=Block())
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("b", "c")
    mn.convert(model, tokens())(tokens()).sum().backward()


def test_a_call_without_gradients_does_not_count() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.tower(x)
        return self.tower(2 * x)

    model = Calls(forward, tower=chain(3))
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("tower.0", "tower.1", "tower.2")
    mn.convert(model, tokens())(tokens()).sum().backward()


@pytest.mark.parametrize(("calm", "is_stream"), [(0, True), (2, False), (3, True), (4, False), (6, True)])
def test_a_loop_of_which_only_the_end_is_trained_is_a_stream_behind_whole_passes(calm: int, is_stream: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            for _ in range(calm):
                x = self.cell(x)
        for _ in range(3):
            x = self.cell(x)
        return x

    model = Calls(forward, cell=Block())
    found = discover(model, tokens())
    assert [stream.blocks for stream in found.streams] == [("cell",) * 3] * is_stream
    reasons = [rejection.reason for rejection in found.rejections]
    assert any("called in another place or order" in reason for reason in reasons) != is_stream


def test_streams_of_a_converted_model_are_found() -> None:
    model = nn.Sequential(chain(3), nn.Linear(6, 6), chain(2))
    x = tokens()
    expected = find_streams(model, x)
    for options in ({}, {"streams": ["0"]}, {"gamma": 0.9, "backward": "stored"}, {"others": "checkpoint"}):
        converted = mn.convert(model, x, **options)
        assert find_streams(converted, x) == expected
        assert str(mn.plan(converted, x)) == str(mn.plan(model, x))
        converted(x).sum().backward()  # is converted still


def gated(block: Any, x: Tensor, branch: Tensor) -> Tensor:
    return x * block.gate(x.mean(1, keepdim=True)).sigmoid() + branch


def test_gated_and_additive_blocks_that_alternate_are_one_stream() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(gated), Block(), Block(gated), Block())
    (stream,) = find_streams(model, tokens())
    assert len(stream) == 4
    assert set(stream.kind.split("+")) == {"gated", "additive"}
    gradients = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, torch.ones(2, 5, 6), backward=backward)
        net(torch.ones(2, 5, 6)).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    for stored, reversible in zip(*gradients, strict=True):
        torch.testing.assert_close(reversible, stored, rtol=1e-6, atol=1e-8)


def test_blocks_that_concatenate_beside_blocks_that_add_are_told_why() -> None:
    found = discover(nn.Sequential(ConcatHalves(), Block(), ConcatHalves()), tokens())
    assert found.streams == ()
    told = {rejection.blocks: rejection.reason for rejection in found.rejections}
    assert "whose skip is a concatenation" in told["0",]
    assert "whose skip is an addition" in told["1",]


def listed(*, alike: bool) -> nn.Module:
    """A list in which blocks stand several times, as in networks that share weights over depth."""
    torch.manual_seed(0)
    first, other = Block(), Block()
    order = [first, first, first] if alike else [first, other, first, first]

    def forward(self: Any, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    return Calls(forward, blocks=nn.ModuleList(order))


@pytest.mark.parametrize("alike", [True, False])
def test_a_list_that_holds_a_block_several_times_is_planned(alike: bool) -> None:
    x = tokens()
    stored, planned = (
        mn.convert(listed(alike=alike), x, **options)
        for options in ({"backward": "stored", "gamma": 1 / 8}, {"spare": 1, "gamma": 1 / 8})
    )
    assert_same(train_step(planned, (x,)), train_step(stored, (x,)))


def test_a_list_that_holds_a_block_several_times_is_converted_as_another_one_was() -> None:
    x = tokens()
    before = mn.convert(listed(alike=False), x)
    after = mn.convert(listed(alike=False), like=mn.describe(before))
    assert mn.describe(after) == mn.describe(before)
    mn.load_training_state(after, mn.training_state(before))
    assert_same(train_step(after, (x,)), train_step(before, (x,)))
