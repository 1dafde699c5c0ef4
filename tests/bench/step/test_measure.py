from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.training_step import TrainingStep, squared
from momentumnet.bench.networks.measured import Network, Stack, family
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.step.measure import block_elements, measure, step_methods
from momentumnet.bench.step.planned import PLANNED, beside_the_best, planned_builds
from momentumnet.bench.step.table import table


class FullMemory(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")


def measured(network: Network, builds: dict[str, ways.Build], *, planning: bool = False) -> dict[str, Row]:
    options = {"dtype": None, "repeats": 1, "advance": lambda: None, "planning": planning}
    rows = measure(network, builds, [Fraction(1, 2)], torch.device("cpu"), **options)
    return {row["method"]: row for row in rows}


def test_elements_are_those_of_all_streams() -> None:
    network = family("transformer", 5)
    step = TrainingStep(network.example(), None)
    assert block_elements(step, network.build()) == 5 * 8 * 64 * 128
    assert block_elements(step, Stack(nn.Linear(128, 128), nn.Tanh())) == 0


def test_without_a_stream_the_bytes_are_not_shared_out() -> None:
    network = Network(lambda: Stack(nn.Linear(8, 8), nn.Linear(8, 8)), lambda: torch.randn(4, 8))
    rows = measured(network, step_methods(network, [Fraction(1, 2)], offloading=False, compiling=False))
    assert rows["checkpoint"]["bytes_per_element_and_block"] is None
    assert "error" in rows["momentum 1/2"]
    assert rows["momentum 1/2"]["bytes_per_element_and_block"] is None
    table([{"network": "plain", **row} for row in rows.values()])


def test_methods_are_measured_where_stored_activations_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    network = family("mlp", 3)
    builds: dict[str, ways.Build] = {
        "stored": lambda model, _: FullMemory(),
        "checkpoint": lambda model, _: ways.checkpointed(model, network.containers, every=1),
    }
    gradient = TrainingStep.gradient

    def only_what_fits(step: TrainingStep, model: nn.Module) -> torch.Tensor:
        if isinstance(model, Stack) and not isinstance(model.blocks[0], ways.Segment):
            raise torch.OutOfMemoryError("out of memory")
        return gradient(step, model)

    monkeypatch.setattr(TrainingStep, "gradient", only_what_fits)
    rows = measured(network, builds)
    assert rows["stored"]["error"] == "out of memory"
    assert rows["checkpoint"]["step_seconds"] > 0
    assert rows["checkpoint"]["gradient_error"] is None
    assert rows["checkpoint"]["memory_to_stored"] is None
    (_, line) = table([{"network": "deep", **row} for row in rows.values()]).rows
    assert line[-1] == "", "an error that is not known is not 0"


def test_planned_networks_are_measured_within_the_bytes_of_the_others() -> None:
    network = family("mlp", 6)
    builds = step_methods(network, [Fraction(1, 2)], offloading=False, compiling=False)
    rows = measured(network, builds, planning=True)
    planned = {name: row for name, row in rows.items() if PLANNED in name}
    of = "momentum 1/2" + PLANNED
    compared = [name for name in builds if "float" not in name]
    free = "any gamma" + PLANNED
    assert set(planned) == {prefix + name for prefix in (of, free) for name in ("least", *compared)}
    for name, row in planned.items():
        if "error" in row:
            assert "no choice fits a budget" in row["error"]
            continue
        assert row["gradient_error"] == 0
        assert row["peak_with_gradients"] <= row["budget_bytes"]
        assert name.endswith("least") or row["time_to_best"] is not None
    assert "error" not in planned[of + "stored"]
    assert not any("error" in planned[free + name] for name in compared)
    assert planned[free + "stored"]["saved_bytes"] == rows["stored"]["saved_bytes"]
    again = rows["stored, again"]
    assert (again["saved_bytes"], again["gradient_error"]) == (rows["stored"]["saved_bytes"], 0.0)
    assert not any(row["best_within"] == "stored, again" for row in planned.values())
    assert planned[free + "least"]["peak_with_gradients"] <= planned[free + "least"]["lowest_peak"] * 1.02
    budgets = [planned[of + name]["budget_bytes"] for name in compared]
    assert planned[of + "stored"]["budget_bytes"] == max(budgets)
    # Checkpointing the network as it was has no state to move, which weighs more than these small blocks.
    converted = [planned[of + name]["budget_bytes"] for name in compared if name.startswith("momentum")]
    assert planned[of + "least"]["peak_with_gradients"] <= min(converted) * 1.02
    (note,) = [
        line
        for line in table([{"network": "mlp", **row} for row in rows.values()]).notes
        if line.startswith(f"mlp, {of}stored:")
    ]
    assert "times the time of" in note


def test_the_best_is_the_quickest_that_fits() -> None:
    def row(method: str, peak: int, seconds: float | None) -> Row:
        return {"method": method, "peak_bytes": peak, "step_seconds": seconds}

    others = [row("stored", 10, 1.0), row("checkpoint", 5, 2.0), row("momentum 1/2 float", 1, 0.5)]
    failed = {**row("momentum 1/2", 4, None), "error": "why"}
    planned, least = (row("momentum 1/2" + PLANNED + of, 5, 1.5) for of in ("checkpoint", "least"))
    peaks = {"stored": 20, "checkpoint": 8, "momentum 1/2": 7, planned["method"]: 8, least["method"]: 6}
    again = row("stored, again", 20, 0.1)
    *_, found, alone = beside_the_best([*others, failed, again, planned, least], peaks)
    assert (found["best_within"], found["time_to_best"], found["budget_bytes"]) == ("checkpoint", 0.75, 8)
    assert (alone["best_within"], alone["time_to_best"], alone["budget_bytes"]) == (None, None, 6)


def test_plans_that_offload_stand_beside_those_that_do_not() -> None:
    peaks = {"stored": 20, "checkpoint": 8, "momentum 1/2": 7}
    plain, builds = (planned_builds(peaks, Fraction(1, 2), offloading=offloading) for offloading in (False, True))
    added = builds.keys() - plain.keys()
    assert added == {f"any gamma, offloading, planned as {of}" for of in ("least", *peaks)}
    name = "any gamma, offloading, planned as checkpoint"
    rows: list[Row] = [
        {"method": method, "peak_bytes": 1, "step_seconds": seconds}
        for method, seconds in (("stored", 1.0), ("checkpoint", 2.0), ("momentum 1/2", 3.0), (name, 1.5))
    ]
    *_, found = beside_the_best(rows, {**peaks, name: 8})
    assert (found["best_within"], found["time_to_best"], found["budget_bytes"]) == ("checkpoint", 0.75, 8)


def test_the_planned_loss_is_that_of_the_step() -> None:
    x = torch.randn(3, 4)
    layer = nn.Linear(4, 4)
    TrainingStep(x, None)(layer)
    (expected,) = torch.autograd.grad(squared(layer(x)), [layer.weight])
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, expected)
