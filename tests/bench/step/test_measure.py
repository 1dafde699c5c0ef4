from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from momentumnet.bench import methods as ways
from momentumnet.bench.networks import Network, Stack, family
from momentumnet.bench.results import Row
from momentumnet.bench.step.measure import block_elements, measure, step_methods
from momentumnet.bench.step.table import table
from momentumnet.bench.training_step import TrainingStep


class FullMemory(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")


def measured(network: Network, builds: dict[str, ways.Build]) -> dict[str, Row]:
    rows = measure(network, builds, [Fraction(1, 2)], torch.device("cpu"), dtype=None, repeats=1, advance=lambda: None)
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
