from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from momentumnet.bench.plan.table import table
from momentumnet.files import whole_file


def test_table_and_json(command: Callable[..., Any]) -> None:
    options = ("--quick", "--dtype", "float32", "--output", "out", "--json")
    done = command("bench", "plan", *options)
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", "plan.json")) == values
    rows = values["rows"]
    assert [(row["network"], row["dtype"], row["budget"]) for row in rows] == [
        ("unet", "float32", budget) for budget in ("least", "middle", "stored")
    ]
    peaks = [row["peak_bytes"] for row in rows]
    assert peaks == sorted(peaks)
    assert all(abs(row["predicted_bytes"] / row["peak_bytes"] - 1) <= 0.1 for row in rows)
    assert "| unet | float32 |" in Path("out", "plan.md").read_text()
    again = command("bench", "plan", *options, "--resume")
    assert json.loads(again.out)["rows"] == rows


def test_the_table_says_what_is_farthest_off() -> None:
    key = {"network": "net", "dtype": "float32", "batch": 2, "budget": "least"}
    figures = {"predicted_bytes": 120, "peak_bytes": 100, "ratio": 1.2, "predicted_held": 50, "saved_bytes": 100}
    figures |= {"planning_seconds": 3.0, "step_seconds": 0.25}
    found = table([{**key, **figures}, {**key, **figures, "ratio": 0.9}])
    assert found.notes[-1] == "Farthest off: 20.0%."
    assert found.rows[0][-3:] == ("1.200", "0.500", "12.0")
