"""What a plan is compared with: the bytes of each method over the step, against measured ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import momentumnet as mn


def network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False), torch.randn(4, 64, 64)


def test_methods_take_what_is_measured(tmp_path: Path) -> None:
    model, x = network()
    plan = mn.plan(model, x, gamma=1 / 8, budget="least")
    peaks = {method.name: max(moment.bytes for moment in method.moments) for method in plan.methods}
    assert list(peaks) == ["stored", "checkpoint", "momentum"]
    assert peaks["stored"] == plan.stored_peak
    for name, backward in {"stored": "stored", "checkpoint": "checkpointed", "momentum": "reversible"}.items():
        net = mn.convert(model, x, backward=backward)

        def step(net: nn.Module = net) -> None:
            net.zero_grad(set_to_none=True)
            output = net(x)
            output.sum().backward()

        step()
        net.zero_grad(set_to_none=True)
        assert peaks[name] == pytest.approx(mn.measure_memory(step).peak_bytes, rel=0.1), name
    plan.save(tmp_path / "plan.json")
    loaded = mn.TrainingPlan.load(tmp_path / "plan.json")
    assert loaded.methods == plan.methods


def test_without_streams_there_is_no_momentum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(4)])
    plan = mn.plan(model, torch.randn(64, 32), budget="least")
    assert [method.name for method in plan.methods] == ["stored", "checkpoint"]
