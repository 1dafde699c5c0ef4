"""The table of ``bench quality`` from rows written out: which figure of the rows stands in which column."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.quality.tables import ACCURACY, table
from momentumnet.bench.quality.tasks import Recipe, optimizer_of
from momentumnet.bench.quality.training import epoch_seconds

MIB = 2**20
SETTINGS: dict[str, Any] = {
    "data": "text",
    "characters": 100,
    "different": 9,
    "held_out": 0.1,
    "length": 8,
    "batch_size": 4,
    "epochs": 2,
    "adam_lr": 0.003,
    "clip": 1.0,
    "finetune_epochs": 1,
    "finetune_scale": 0.3,
}


def row(method: str, seed: int, scores: list[float], seconds: list[float], **changes: Any) -> dict[str, Any]:
    plain = {
        "model": "vit2x16",
        "method": method,
        "seed": seed,
        "depth": 2,
        "scores": scores,
        "score_last": scores[-1],
        "epoch_seconds": seconds,
        "gamma_first": None,
        "gamma_last": None,
        "peak_bytes_first": 3 * MIB,
        "peak_bytes_last": 3 * MIB,
        "step_ratio": 1.0,
    }
    return plain | changes


def test_each_column_is_what_its_heading_says() -> None:
    scheduled = {"gamma_first": "1/8", "gamma_last": "9/10", "peak_bytes_last": MIB}
    rows = [
        row("original", 0, [90.0, 80.0], [1.0, 1.0]),
        row("original", 1, [90.0, 82.0], [3.0, 90.0]),
        row("scheduled", 0, [70.0, 60.0], [5.0, 6.0], score_first=50.0, step_ratio=1.25, **scheduled),
        row("scheduled", 1, [71.0, 64.0], [7.0, 70.0], score_first=54.0, step_ratio=1.75, **scheduled),
    ]
    found = table(rows, SETTINGS, ACCURACY)
    # Medians: of 1, 1, 3, 90 seconds it is 2, of 5, 6, 7, 70 it is 6.5. Deviations of two: their distance / sqrt 2.
    assert list(found.rows) == [
        ("vit2x16", "original", "none", "", "81.00 ± 1.41", "3.00", "2.00", "1.00", "1.00", "2"),
        (
            *("vit2x16", "scheduled", "1/8 to 9/10", "52.00 ± 2.83", "62.00 ± 2.83"),
            *("3.00 to 1.00", "6.50", "3.25", "1.50", "2"),
        ),
    ]
    assert len(found.columns) == len(found.rows[0])


def test_seconds_of_an_epoch_are_those_of_all_its_steps() -> None:
    course: Any = SimpleNamespace(step_seconds=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], steps_per_epoch=3)
    assert epoch_seconds(course) == [7.0, 56.0]


def test_weights_of_transformers_decay_by_a_hundredth_of_the_rate() -> None:
    """AdamW (Loshchilov, Hutter, ICLR 2019): without a gradient a step multiplies by 1 - lr * decay."""
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, adam_lr=0.4, finetune_epochs=1, finetune_scale=1.0)
    model = nn.Linear(3, 3).double()
    before = model.weight.detach().clone()
    optimizer = optimizer_of(model, recipe, transformer=True, scale=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (model.weight / before).detach().flatten().tolist() == pytest.approx([1 - 0.2 * 0.01] * 9, rel=1e-12)
