"""Buffers that a call fills, registers or deletes: a recompute sees what its forward saw, and leaves no trace.

The reference is the stored network under plain autograd: at gamma 0 with others="checkpoint" it is computed to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.buffers.buffers import Buffers
from tests.contract.branches import WIDTH, Branch, Network

EXACT: dict[str, Any] = {"gamma": 0, "backward": "checkpointed", "others": "checkpoint"}


class Counted(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0


class NoneFirst(Counted):
    total: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", None)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().abs().sum(0)
        self.total = seen if self.total is None else self.total + seen
        return self.branch(x * self.total.mean())


class NotThere(Counted):
    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().abs().sum(0)
        if "total" not in self._buffers:
            self.register_buffer("total", seen, persistent=False)
        else:
            self.total.add_(seen)
        return self.branch(x * self.total.mean())


class OneMoreEachCall(Counted):
    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer(f"seen{len(self._buffers)}", x.detach().mean(0))
        return self.branch(x + torch.stack(list(self._buffers.values())).sum(0))


class Deletes(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(WIDTH))
        self.register_buffer("scale", torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            del self.offset
        return self.branch(x * self.offset if hasattr(self, "offset") else x * self.scale)


class DeletesAtTheEnd(Deletes):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.branch(x * self.offset if "offset" in self._buffers else x * self.scale)
        if self.calls == 3:
            del self.offset
        elif self.calls == 4:
            self.register_buffer("offset", x.detach().mean(0))
        return y


class Empties(NoneFirst):
    """Counts two calls, and begins anew."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.calls += 1
        if self.calls % 2 == 0:
            self.total = None
        return y


KINDS = [NoneFirst, NotThere, OneMoreEachCall, Deletes, DeletesAtTheEnd, Empties]


def network(kind: type[Counted], *, in_blocks: bool) -> nn.Module:
    return Network(kind, NoneFirst) if in_blocks else Network(NoneFirst, kind)


def buffers_of(model: nn.Module) -> list[tuple[str, Tensor | None]]:
    """All of them, in order, those that are None as well."""
    return [
        (name, None if value is None else value.clone())
        for module in model.modules()
        for name, value in module._buffers.items()
    ]


def assert_same_buffers(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    assert list(one.state_dict()) == list(other.state_dict())
    for (name, value), (other_name, other_value) in zip(buffers_of(one), buffers_of(other), strict=True):
        assert name == other_name
        torch.testing.assert_close(value, other_value, rtol=tolerance, atol=tolerance)


def one_after_the_other(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    losses = []
    for x in batches:
        losses.append(model(x).square().mean())
        losses[-1].backward()
    return losses


def forwards_first(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    losses = [model(x).square().mean() for x in batches]
    for loss in losses:
        loss.backward()
    return losses


def forwards_first_backwards_from_the_last(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    losses = [model(x).square().mean() for x in batches]
    for loss in reversed(losses):
        loss.backward()
    return losses


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("train", [one_after_the_other, forwards_first, forwards_first_backwards_from_the_last])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_network_itself(
    kind: type[Counted], train: Callable[[nn.Module, list[Tensor]], list[Tensor]], *, in_blocks: bool
) -> None:
    if kind is NotThere and train is not one_after_the_other:
        pytest.skip("overwrites what an earlier forward's backward needs: refused by plain autograd, too")
    torch.manual_seed(0)
    stored = network(kind, in_blocks=in_blocks)
    converted = mn.convert(copy.deepcopy(stored), torch.randn(8, WIDTH), **EXACT)
    batches = [torch.randn(8, WIDTH) for _ in range(5)]
    expected, got = train(stored, batches), train(converted, batches)
    assert torch.equal(torch.stack(got), torch.stack(expected))
    for (name, one), (_, other) in zip(converted.named_parameters(), stored.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
    assert_same_buffers(converted, stored, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_reversible_stream(kind: type[Counted]) -> None:
    torch.manual_seed(0)
    model, x = network(kind, in_blocks=True), torch.randn(8, WIDTH)
    stored = mn.convert(model, x, gamma=1 / 8, backward="stored", others="keep")
    recomputed = mn.convert(model, x, gamma=1 / 8, backward="reversible", others="keep")
    batches = [torch.randn(8, WIDTH) for _ in range(5)]
    one_after_the_other(stored, batches)
    one_after_the_other(recomputed, batches)
    for (name, one), (_, other) in zip(recomputed.named_parameters(), stored.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert_same_buffers(recomputed, stored, 1e-5)


def test_the_very_tensor_of_the_forward_stands_there_again() -> None:
    model = mn.convert(network(NotThere, in_blocks=False), torch.randn(8, WIDTH), **EXACT)
    loss = model(torch.randn(8, WIDTH)).sum()
    tensor, counter, value = model.between.total, model.between.total._version, model.between.total.clone()
    loss.backward()
    assert model.between.total is tensor
    assert tensor._version == counter
    assert torch.equal(tensor, value)
    assert "between.total" not in model.state_dict()  # it is not persistent


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_run_that_is_taken_back(kind: type[Counted]) -> None:
    branch = kind()
    for _ in range(4):
        before = buffers_of(branch)
        seen = Buffers([branch])
        seen.kept_for_another_first_run()
        branch(torch.randn(8, WIDTH))
        seen.forget_unchanged()
        after = buffers_of(branch)
        seen.put_back()
        branch.calls -= branch.calls > 0
        assert [name for name, _ in buffers_of(branch)] == [name for name, _ in before]
        for (_, value), (_, expected) in zip(buffers_of(branch), before, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
        branch(torch.randn(8, WIDTH))
        assert [name for name, _ in buffers_of(branch)] == [name for name, _ in after]
