"""A network that is called several times in a step (two views, real and false examples), planned for a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.plans.training_plan import TrainingPlan
from tests.models import ResidualMLP


class Encoder(nn.Module):
    """A stream of six blocks, and layers around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, 32), nn.Linear(32, 8)
        self.blocks = nn.ModuleList(ResidualMLP(32, 128) for _ in range(6))

    def forward(self, x: Tensor, depth: int = 6) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[:depth]:
            x = block(x)
        output: Tensor = self.head(x)
        return output


class Views(nn.Module):
    """Of two views."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.encoder(x), self.encoder(2 * x)


class Triplet(Views):
    """Of three, of which the last goes through the first blocks alone."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return *super().forward(x), self.encoder(x + 1, 4)


class Translated(Views):
    """Of what comes out of it: its second run needs the first."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.encoder(x)
        return first, self.encoder(self.back(first))


class InTurns(Views):
    """Two views side by side, block by block."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = self.encoder.stem(x), self.encoder.stem(2 * x)
        for block in self.encoder.blocks:
            first, second = block(first), block(second)
        return self.encoder.head(first), self.encoder.head(second)


class Deeper(Views):
    """One stream that goes through its blocks twice, with another module beside them the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)) for _ in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = second = self.encoder.stem(x)
        for block, beside in zip(self.encoder.blocks, self.beside, strict=True):
            first, second = block(first), beside(second)
        for block in self.encoder.blocks:
            first = block(first)
        return self.encoder.head(first), second


X = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
NETWORKS = (Views, Triplet, Translated, InTurns, Deeper)


def made(network: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network()


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([output.float().pow(2).mean() for output in outputs]).sum()


def run(net: nn.Module, *, half: bool = False) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        total = loss(net(X))
    total.backward()


def gradients(net: nn.Module, *, half: bool = False) -> list[Tensor]:
    net.zero_grad(set_to_none=True)
    run(net, half=half)
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def taken(net: nn.Module, *, half: bool = False) -> mn.MemoryReport:
    gradients(net, half=half)
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(lambda: run(net, half=half))


def planned(network: type[nn.Module], budget: int | str, *, half: bool = False, **options: float) -> TrainingPlan:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return mn.plan(made(network), X, budget=budget, loss=loss, **options)


def ways_by_block(plan: TrainingPlan) -> dict[tuple[str, ...], set[str]]:
    found: dict[tuple[str, ...], set[str]] = {}
    for unit in plan.units:
        found.setdefault(unit.names, set()).add(unit.way)
    return found


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gamma", [0, 1 / 8])
@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_planned_is_what_is_taken(network: type[nn.Module], gamma: float, half: bool) -> None:
    least = planned(network, "least", half=half, gamma=gamma)
    expected = gradients(mn.convert(made(network), X, gamma=gamma, backward="stored"), half=half)
    assert least.peak < 0.6 * least.stored_peak
    between = (least.peak + least.stored_peak) // 2
    for budget in (least.measured_peak, between, int(1.1 * least.stored_peak)):
        plan = planned(network, budget, half=half, gamma=gamma)
        net = mn.convert(made(network), X, plan=plan)
        report = taken(net, half=half)
        assert plan.peak == pytest.approx(report.peak_bytes, rel=0.08 if half else 0.06)
        assert plan.held == pytest.approx(report.saved_bytes, rel=0.05, abs=40_000)
        assert report.peak_bytes <= budget
        assert network is Deeper or all(len(ways) == 1 for ways in ways_by_block(plan).values())
        assert all(map(torch.equal, gradients(net, half=half), expected))


@pytest.mark.parametrize("gamma", [0, 1 / 8])
def test_some_blocks_are_recomputed_and_others_kept(gamma: float) -> None:
    least = planned(Views, "least", gamma=gamma)
    plan = planned(Views, (least.peak + least.stored_peak) // 2, gamma=gamma)
    assert {way for ways in ways_by_block(plan).values() for way in ways} > {"stored"}


def test_whichever_gamma_is_quickest() -> None:
    least = planned(Views, "least")
    assert least.peak <= min(planned(Views, "least", gamma=gamma).peak for gamma in (0, 1 / 8))


def test_a_plan_of_such_a_network_is_saved_and_read(tmp_path: Path) -> None:
    plan = planned(Views, "least", gamma=1 / 8)
    plan.save(tmp_path / "plan.json")
    net = mn.convert(made(Views), X, plan=TrainingPlan.load(tmp_path / "plan.json"))
    expected = gradients(mn.convert(made(Views), X, gamma=1 / 8, backward="stored"))
    assert all(map(torch.equal, gradients(net), expected))


def test_other_ways_when_it_runs_again_are_refused() -> None:
    plan = planned(Views, "least", gamma=1 / 8)
    ways = ["stored" if at >= len(plan.units) // 2 else unit.way for at, unit in enumerate(plan.units)]
    units = tuple(replace(unit, way=way) for unit, way in zip(plan.units, ways, strict=True))
    with pytest.raises(mn.ConversionError, match="come in one way when it runs first, and in another one later"):
        mn.convert(made(Views), X, plan=replace(plan, units=units))


def test_a_run_that_misses_blocks_is_refused() -> None:
    plan = planned(Views, "least", gamma=1 / 8)
    with pytest.raises(mn.ConversionError, match="has other blocks than its units are"):
        mn.convert(made(Views), X, plan=replace(plan, units=plan.units[:-1]))
