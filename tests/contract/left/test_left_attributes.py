"""Blocks that leave a tensor of their graph on an attribute, as mixtures of experts leave an auxiliary loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.memory import measure_memory
from tests.contract.left.experts import OPTIONS, WIDTH, Block, Expert, gradients_of


class Experts(nn.Module):
    """Blocks, and modules that are none, each of which leaves a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(12))
        self.others = nn.ModuleList(Expert() for _ in range(4))

    def losses(self) -> list[Tensor]:
        return [*(block.expert.aux for block in self.blocks), *(other.aux for other in self.others)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for part in (*self.blocks, *self.others):
            x = part(x)
        return x, torch.stack(self.losses()).sum()


def loss_of(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].square().mean() + output[1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recompute_leaves_no_graph_behind(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(512, WIDTH)
    found, stored = (mn.convert(model, x, gamma=0.9, **way) for way in (options, {"backward": "stored"}))
    peaks, gradients = [], []
    for net in (found, stored):

        def step(net: nn.Module = net) -> None:
            loss_of(net(x)).backward()

        step()
        net.zero_grad(set_to_none=True)
        peaks.append(measure_memory(step).peak_bytes)
        gradients.append([p.grad for p in net.parameters()])
    assert peaks[0] < 0.65 * peaks[1]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_the_attribute_is_the_tensor_of_the_forward() -> None:
    model, x = Experts(), torch.randn(8, WIDTH)
    found = mn.convert(model, x, others="checkpoint")
    for _ in range(2):
        output = found(x)
        before = found.losses()
        loss_of(output).backward()
        assert all(map(lambda left, right: left is right, before, found.losses()))


class Counting(Block):
    """Counts its calls and what its hidden values do, on plain attributes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.calls, self.load = way, 0, torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        positive = (x > 0).sum(0).detach()
        if self.way == "in place":
            self.load += positive
        else:
            self.load = self.load + positive
        return super().forward(x) * (0.5 if self.calls <= 2 else 1.0) + 0.5 * x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", ["in place", "anew"])
def test_what_a_call_counts_is_counted_once(way: str, options: dict[str, Any]) -> None:
    """A warm-up of two steps ends when as many have been made."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Counting(way) for _ in range(4)]), torch.randn(8, WIDTH)
    nets = [mn.convert(model, x, **way) for way in (options, {"backward": "stored"})]
    before = [int(block.calls) for block in nets[0]]
    for _ in range(4):
        torch.testing.assert_close(*[gradients_of(net, x) for net in nets], rtol=1e-4, atol=1e-7)
    assert [block.calls - calls for block, calls in zip(nets[0], before, strict=True)] == [4] * 4
    assert all(torch.equal(block.load, other.load) for block, other in zip(*nets, strict=True))


class Lazy(Block):
    """Makes something in its first call, and computes with it by other operations from then on."""

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "scale"):
            return super().forward(x * self.scale)
        self.scale = torch.full((WIDTH,), 0.5)
        return super().forward(x / 2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_the_first_call_makes_is_made_again_in_its_recompute(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Lazy() for _ in range(4)]), torch.randn(8, WIDTH)
    found, stored = (mn.convert(model, x, **way) for way in (options, {"backward": "stored"}))
    for block in (*found, *stored):
        vars(block).pop("scale", None)
    for _ in range(2):
        torch.testing.assert_close(gradients_of(found, x), gradients_of(stored, x), rtol=1e-4, atol=1e-7)
    assert all(hasattr(block, "scale") for block in found)


class Graph(Block):
    """Has the adjacency of its graph on an attribute, a sparse tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.neighbours = torch.eye(8).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.expert.leave(self.expert.enter(self.neighbours @ x)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sparse_tensors_on_attributes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x, gradients = nn.Sequential(*[Graph() for _ in range(4)]), torch.randn(8, WIDTH), []
    for way in (options, {"backward": "stored"}):
        net = mn.convert(model, x, **way)
        net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


class Sometimes(Block):
    """Leaves its loss only when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.aux: Tensor | float | None = None
        self.asked = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.expert.enter(x))
        self.aux = hidden.square().mean() if self.asked else None
        return x + self.expert.leave(hidden)


def test_losses_that_begin_later_leave_no_graph_behind() -> None:
    torch.manual_seed(0)
    peaks = []
    for later in (False, True):
        net = mn.convert(nn.Sequential(*[Sometimes() for _ in range(12)]), torch.randn(512, WIDTH))
        x = torch.randn(512, WIDTH)

        def step(net: nn.Module = net, x: Tensor = x) -> None:
            output = net(x).square().mean()
            (output + sum(block.aux for block in net if block.asked)).backward()

        for asked in (not later, True):
            for block in net:
                block.asked = asked
            step()
        net.zero_grad(set_to_none=True)
        peaks.append(measure_memory(step).peak_bytes)
    assert peaks[1] <= 1.01 * peaks[0]


def test_a_loss_that_is_taken_away_before_the_backward_stays_away() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Sometimes() for _ in range(4)]), torch.randn(8, WIDTH)
    for block in model:
        block.asked = True
    found, stored = (mn.convert(model, x, backward=way) for way in ("reversible", "stored"))
    for _ in range(2):
        gradients = []
        for net in (found, stored):
            net.zero_grad()
            total = net(x).square().mean()
            for block in net:
                total, block.aux = total + block.aux, 0.0
            total.backward()
            assert [block.aux for block in net] == [0.0] * 4
            gradients.append([p.grad for p in net.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


class InABuffer(Block):
    """Counts past the counter of changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.data += 1
        return super().forward(x)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_counted_in_a_buffer_past_its_counter_is_counted_once(options: dict[str, Any]) -> None:
    x = torch.randn(8, WIDTH)
    net = mn.convert(nn.Sequential(*[InABuffer() for _ in range(4)]), x, **options)
    before = [int(block.calls) for block in net]
    net(x).square().mean().backward()
    assert [int(block.calls) - calls for block, calls in zip(net, before, strict=True)] == [1] * 4


class Histogram(Block):
    """Counts in a tensor of more elements than are copied without a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.load = torch.zeros(2000)

    def forward(self, x: Tensor) -> Tensor:
        self.load += 1
        return super().forward(x) / (1 + (self.load[0] > 3))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_large_tensor_is_counted_once_and_seen_as_it_was(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*[Histogram() for _ in range(3)]), torch.randn(8, WIDTH)
    found, stored = (mn.convert(model, x, **way) for way in (options, {"backward": "stored"}))
    for _ in range(5):
        torch.testing.assert_close(gradients_of(found, x), gradients_of(stored, x), rtol=1e-4, atol=1e-7)
        for block, other in zip(found, stored, strict=True):
            torch.testing.assert_close(block.load, other.load)
