"""Where a momentum stream makes a tensor of its own, and what it stands in the place of is kept by others as well."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.fit import measured_step
from momentumnet.planner.profiles.choice import Choice, Way
from tests.models import ResidualMLP

WIDTH = 64


class Rectified(ResidualMLP):
    """Keeps what it returns, as blocks of a ResNet do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Network(nn.Module):
    """Its forward has functions in front of its blocks and behind, of which each keeps the tensor on the edge."""

    def __init__(self, kind: type[ResidualMLP], front: str, behind: str) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(kind(WIDTH) for _ in range(5))
        self.head = nn.Linear(WIDTH, 8)
        self.front, self.behind = front, behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        before = x = F.relu(x) if self.front == "relu" else x
        if self.behind != "product":
            del before
        for block in self.blocks:
            x = block(x)
        if self.behind == "product":
            return self.head(x * before)
        return x if self.behind == "returned" else self.head(x)


CASES = [
    (ResidualMLP, "relu", "head"),
    (ResidualMLP, "", "product"),
    (Rectified, "", "head"),
    (Rectified, "relu", "head"),
    (Rectified, "relu", "product"),
    (Rectified, "", "returned"),
]


class Told(ResidualMLP):
    """Adds an argument to what it takes, which autograd does not keep."""

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return x + self.inner(x + told)


class Telling(nn.Module):
    """Its blocks are told of one tensor, as large as the stream, or each of one of its own."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.tell = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(5 if apart else 1))
        self.blocks = nn.ModuleList(Told(WIDTH) for _ in range(5))
        self.head = nn.Linear(WIDTH, 8)
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        given, told = x, None
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            told = self.tell[number](given) if told is None or self.apart else told
            x = block(x, told)
        return self.head(x)


def check_predicted(model: nn.Module, way: Way, *, under: float = 0.005) -> None:
    x = torch.randn(2048, WIDTH)
    step = measured_step(model, x, gamma=Fraction(1, 8))
    units = step.options.profile.units
    assert [unit.stream for unit in units] == [0] * 5
    plan = step._with([Choice(0, 5, way)], None, 1 << 40)
    net = mn.convert(model, plan=plan)

    def train() -> None:
        output = net(x)
        output.sum().backward()

    train()
    net.zero_grad(set_to_none=True)
    found = mn.measure_memory(train)
    # A recompute ends with what is saved last, and what blocks return is not made: its peak is predicted too high.
    over = 0.06 if way is Way.CHECKPOINTED else 0.005
    assert (1 - under) * found.peak_bytes <= plan.peak <= (1 + over) * found.peak_bytes
    assert plan.held == pytest.approx(found.saved_bytes, rel=0.05 if way is Way.REVERSIBLE else 0.001)


@pytest.mark.parametrize("way", [Way.STORED, Way.CHECKPOINTED, Way.REVERSIBLE])
@pytest.mark.parametrize(("kind", "front", "behind"), CASES)
def test_what_is_held_and_the_peak_are_predicted(kind: type[ResidualMLP], front: str, behind: str, way: Way) -> None:
    """CIFAR's ResNets are such networks: 6 % more was held than planned, and a step took 7 % more."""
    torch.manual_seed(0)
    check_predicted(Network(kind, front, behind), way)


@pytest.mark.parametrize("apart", [False, True])
def test_arguments_that_a_recompute_keeps_are_predicted(apart: bool) -> None:
    """Embeddings of positions or times that are added: autograd keeps none, a step took up to half as much again."""
    torch.manual_seed(0)
    check_predicted(Telling(apart=apart), Way.REVERSIBLE, under=0.02)
