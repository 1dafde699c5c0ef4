"""The report of an initialisation prints and plots."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from momentumnet.init.report import InitReport, norms_of, scales_between
from momentumnet.progress import steps_with_progress


def test_prints_as_a_table() -> None:
    report = InitReport("gradinit", {"a.weight": 0.25, "a.bias": 1.0, "b": 0.0}, (2.0, 1.0), (3.0, 4.0), ("removed x",))
    assert str(report).splitlines() == [
        "gradinit: 2 parameters changed",
        "  objective 2 -> 1 in 2 steps",
        "  gradient norm 3 -> 4",
        "  removed x",
        "  a.weight  x 0.25",
        "  b         x 0",
    ]


def test_plots(tmp_path: Path) -> None:
    InitReport("a", {"w": 2.0}).plot(tmp_path / "a.png")
    InitReport("a", {"w": 2.0}, (2.0, 1.0), (3.0, 4.0)).plot(str(tmp_path / "b.png"))
    assert (tmp_path / "b.png").stat().st_size > (tmp_path / "a.png").stat().st_size > 1000


def test_scales() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    before = norms_of(model)
    with torch.no_grad():
        model.weight.mul_(0.5)
    assert scales_between(before, norms_of(model)) == {"weight": 0.5, "bias": 1.0}
    with torch.no_grad():
        model.bias.fill_(1)
    assert scales_between(before, norms_of(model))["bias"] == math.inf


def test_steps() -> None:
    assert (
        list(steps_with_progress(3, "", progress=True)) == list(steps_with_progress(3, "", progress=False)) == [0, 1, 2]
    )


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[3, -4]], dtype=torch.int8),
        torch.tensor([3 - 4j]),
        torch.full((25,), 1e4, dtype=torch.float16),  # its square is beyond float16
        torch.full((4097,), 2.0**-6, dtype=torch.bfloat16),
    ],
)
def test_norms_of_any_type(values: Tensor) -> None:
    model = nn.ParameterDict({"weight": nn.Parameter(values, requires_grad=False)})
    expected = float(values.to(torch.complex128).abs().square().sum().sqrt())
    assert float(norms_of(model)["weight"]) == pytest.approx(expected, rel=1e-6)
