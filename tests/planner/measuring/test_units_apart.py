"""Units of one make that take other bytes, and parameters that are left with less than a whole gradient each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import momentumnet as mn
from momentumnet.planner.profiles.flow import flow_of
from tests.models import ResidualMLP


class Repeated(nn.Module):
    """What it computes in between is ``times`` as wide, which its parameters do not tell."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.layer = times, nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.layer(x).repeat(1, self.times).tanh()
        return x + wide.view(len(x), self.times, -1).mean(1)


class Branches(nn.Module):
    """Convolutions of one make, each with another stride, whose outputs are put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(48, 8, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 16, 3, stride, 1), nn.BatchNorm2d(16), nn.ReLU()) for stride in (4, 1, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found: Tensor = self.mix(torch.cat([F.interpolate(branch(x), x.shape[2:]) for branch in self.branches], dim=1))
        return found.mean((2, 3))


class Words(nn.Module):
    """Many words, few of which are read."""

    def __init__(self, *, in_a_unit: bool) -> None:
        super().__init__()
        table = nn.Embedding(10_000, 64, sparse=True)
        self.front = nn.Sequential(table, nn.LayerNorm(64)) if in_a_unit else table
        self.blocks = nn.ModuleList(ResidualMLP(64) for _ in range(4))

    def forward(self, words: Tensor) -> Tensor:
        x: Tensor = self.front(words)
        for block in self.blocks:
            x = block(x)
        return x


class Experts(nn.Module):
    """Each row goes to one of the experts, so that some of them have nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(2):
            y = y.index_add(0, torch.tensor([number]), self.experts[number](x[number : number + 1]).tanh())
        return y


class TiedWords(nn.Module):
    """One matrix at both ends: of its gradients the one of the last layer is there first, and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Embedding(5000, 32), nn.LayerNorm(32))
        self.blocks = nn.ModuleList(ResidualMLP(32) for _ in range(4))
        self.head = nn.Linear(32, 5000, bias=False)
        self.head.weight = self.front[0].weight

    def forward(self, words: Tensor) -> Tensor:
        x: Tensor = self.front(words)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, :1])  # type: ignore[no-any-return]


def words() -> Tensor:
    return torch.randint(5000, (8, 32), generator=torch.Generator().manual_seed(1))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "repeated": (lambda: nn.Sequential(*map(Repeated, (1, 16, 1, 32, 2, 8))), lambda: normal(64, 64)),
    "branches": (Branches, lambda: normal(4, 3, 32, 32)),
    "sparse in a unit": (lambda: Words(in_a_unit=True), words),
    "sparse outside": (lambda: Words(in_a_unit=False), words),
    "experts": (lambda: nn.Sequential(*(Experts() for _ in range(5))), lambda: normal(3, 64)),
    "tied": (TiedWords, words),
}


def squared(output: Tensor) -> Tensor:
    return output.square().mean()


def bytes_there(net: nn.Module) -> int:
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return sum((gradient._values() if gradient.is_sparse else gradient).nbytes for gradient in gradients)


@pytest.mark.parametrize("gradients", ["anew", "present"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_is_predicted(name: str, gradients: str) -> None:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    model, given = build(), example()
    options: dict[str, Any] = {"gamma": 0, "gradients": gradients, "loss": squared}
    least = mn.plan(model, given, budget="least", **options)
    for plan in (least, mn.plan(model, given, budget=4 * least.stored_peak, **options)):
        net = mn.convert(model, plan=plan)
        squared(net(given)).backward()
        if gradients == "anew":
            net.zero_grad(set_to_none=True)
        there = bytes_there(net)

        def step(net: nn.Module = net) -> None:
            output = net(given)  # a training loop holds it
            squared(output).backward()

        report = mn.measure_memory(step)
        assert plan.peak == pytest.approx(there + report.peak_bytes, rel=0.1)


def test_a_gradient_counts_where_backward_comes_to_it_first() -> None:
    """By hand: one matrix in two units, behind them in code outside, and one that nothing uses."""
    shared, idle, ranges = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), []
    size = shared.weight.nbytes

    def unit(layer: nn.Module, x: Tensor) -> Tensor:
        start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        output: Tensor = layer(x)
        ranges.append((start, torch.autograd._get_sequence_nr()))  # type: ignore[attr-defined]
        return output

    y = unit(shared, unit(shared, torch.randn(2, 4)))
    del idle
    flow = flow_of([y], ranges)
    assert [flow.of_unit(place) for place in range(2)] == [0, size]
    flow = flow_of([shared(y)], ranges)
    assert [flow.of_unit(place) for place in range(2)] == [0, 0]
    assert [flow.of_parameters(place) for place in range(3)] == [0, 0, size]


def test_pieces_of_a_gradient_take_no_bytes_of_their_own() -> None:
    """By hand: side by side are three tensors, of whose gradient each gets a part, which lives as long as any."""
    tensors = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    part = tensors[0].nbytes
    flow = flow_of([torch.cat([tensor.exp() for tensor in tensors])], [])
    assert flow.work == (3 * part,)
    assert flow.in_front(0) == 3 * part + 3 * part  # and what is left
    assert flow_of([torch.cat([tensor.exp().tanh() for tensor in tensors])], []).work == (3 * part + part,)
