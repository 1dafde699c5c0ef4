"""What the zoo measures, on networks whose blocks are counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from momentumnet.bench.zoo.coverage import residual_blocks
from momentumnet.bench.zoo.entries import Entry
from momentumnet.bench.zoo.measure import measure
from momentumnet.bench.zoo.table import tables
from momentumnet.bench.zoo.training_pass import largest_error
from momentumnet.streams import discover


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, 6 * width), nn.GELU(), nn.Linear(6 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Overwriting(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.branch(2 * x))


def entry(*layers: nn.Module) -> Entry:
    model = nn.Sequential(*layers)

    def rows() -> Tensor:
        return torch.linspace(-1, 1, 80).view(10, 8)

    return Entry("timm", "net", lambda: model, rows, rows)


def test_a_row() -> None:
    row = measure(entry(Block(8), Block(8), nn.Linear(8, 12), Block(12), nn.Linear(12, 8), Block(8), Block(8)))
    assert row["streams"] == [["", 2], ["", 2]]
    assert (row["covered"], row["alone"], row["blocks"]) == (4, 1, 5)
    assert row["checkpointed_bytes"] <= row["kept_bytes"] < row["saved_bytes"]
    assert row["gradient_error"] == 0.0
    (table,) = tables([row])
    assert table.rows[0][3:5] == ["2 2", "4 + 1 of 5"]
    assert "1 of 1 models have streams" in " ".join(table.notes)


def test_the_reason_of_a_network_without_streams() -> None:
    row = measure(entry(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)))
    assert (row["blocks"], row["gradient_error"]) == (0, None)
    assert row["refusal"] == "no two sibling modules pass a tensor of one shape along"
    row = measure(entry(nn.Linear(8, 8), Overwriting(8), Overwriting(8)))
    assert row["refusal"].startswith("2 modules: a residual block that overwrites its own input")
    (table,) = tables([row])
    assert table.rows[0][3:5] == ["", "0 of 2"]


def test_a_network_without_streams_is_planned_for_the_least_bytes() -> None:
    def many() -> Tensor:
        return torch.linspace(-1, 1, 8000).view(1000, 8)

    blocks = [layer for _ in range(4) for layer in (Block(8), nn.Linear(8, 8), nn.Linear(8, 8))]
    row = measure(Entry("timm", "net", lambda: nn.Sequential(*blocks), many, many))
    assert row["planned_peak_bytes"] < row["peak_bytes"] / 2
    assert row["kept_bytes"] is None
    assert row["gradient_error"] == 0.0
    (table,) = tables([row])
    goes = 1 - row["planned_peak_bytes"] / row["peak_bytes"]
    assert table.rows[0][6:] == ["", "", f"{goes:.1%}", "0.0e+00"]
    assert f"by a plan of the least budget. Median of what goes of the peak: {goes:.1%}" in " ".join(table.notes)


def test_the_reason_is_that_of_residual_blocks_before_that_of_layers() -> None:
    blocks = [layer for _ in range(2) for layer in (Block(8), nn.Linear(8, 8), nn.Linear(8, 8))]
    assert measure(entry(*blocks))["refusal"].startswith("2 modules: a residual block, but no residual block before")


def test_changes_of_shape_are_one_reason() -> None:
    """Each of them is another one; two layers have no skip."""
    layers = (nn.Sequential(nn.Linear(before, after)) for before, after in ((8, 12), (12, 10), (10, 8)))
    row = measure(entry(*layers, nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))))
    assert row["refusal"] == "3 modules change the shape, as from (10, 8) to (10, 12)"
    row = measure(entry(nn.Sequential(nn.Linear(8, 12)), nn.Sequential(nn.Tanh())))
    assert row["refusal"] == "1 module changes the shape from (10, 8) to (10, 12)"


def test_blocks_that_change_the_shape_count() -> None:
    """A ResNet-18 has eight, of which two follow one another in the same shape."""
    model = torchvision.models.resnet18()
    found = residual_blocks(model, discover(model, torch.rand(1, 3, 64, 64)))
    assert found == {f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)}


def test_errors_of_gradients() -> None:
    expected = {"weight": torch.tensor([3.0, 4.0]), "bias": torch.zeros(2)}
    off = {**expected, "weight": torch.tensor([3.0, 4.5])}
    assert largest_error(off, expected) == pytest.approx(0.1)
    assert largest_error(expected, expected) == 0.0
    noise = {**expected, "bias": torch.tensor([5e-7, 0.0])}  # a norm stands behind it
    assert largest_error(noise, expected) == pytest.approx(1.0)
    assert largest_error({"weight": expected["weight"]}, expected) == math.inf
    assert math.isnan(largest_error({**expected, "bias": torch.full((2,), math.nan)}, expected))
