"""The benchmark of SAM's step: what is written, and the memory that it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.sam_step import operations as sam_step
from tests.bench.sam_step.networks import network


def test_quick_run_writes_a_row_for_each_method(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("bench", "sam-step", "--quick", "--output", str(tmp_path))
    found = json.loads((tmp_path / "sam-step.json").read_text())
    rows = {row["method"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"]) == 9
    assert rows[sam_step.REFERENCE]["time_to_reference"] == 1
    ratio = rows["SAM"]["seconds"] / rows[sam_step.REFERENCE]["seconds"]
    assert rows["SAM"]["time_to_reference"] == pytest.approx(ratio)
    # What docs/sam.md says: a copy of the parameters, one of the largest block, one and the gradients' of chunks. Of
    # networks so small less is seen where the convolutions' own work space, which copies weights, makes the peak.
    net = network()
    largest = max(sum(p.numel() for p in part) for part in sam_step.parts(net)) / sum(
        p.numel() for p in net.parameters()
    )
    copies = {"SAM": 1, "adaptive SAM": 1, "Extragradient": 1, "SAM, blocks=": largest, "SAM, step_chunks in 4": 2}
    for method, expected in copies.items():
        assert expected / 3 < rows[method]["extra_copies"] < expected + 0.1, method
    for method in ("the same again", "one pass, one step"):
        assert rows[method]["extra_copies"] == pytest.approx(0, abs=0.1), method
    table = (tmp_path / "sam-step.md").read_text()
    assert f"| SAM | {1000 * rows['SAM']['seconds']:.1f} | {ratio:.3f} | " in table
    assert "adaptive SAM" in done.out


@pytest.mark.parametrize("case", ["16", "7x32", "16x0", "ax32", "16x32,"])
def test_cases_that_cannot_be_are_refused(command: Callable[..., Any], case: str) -> None:
    done = command("bench", "sam-step", "--cases", case)
    assert done.status == 2
    assert "is no batch (8 or more) x image size" in done.err
