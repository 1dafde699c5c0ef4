"""The benchmark of couplings: a row for each rule, what is known of them, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.couplings.networks import METHODS, REFERENCE


def test_quick_run_writes_a_row_for_each_method_and_resumes(command: Callable[..., Any], tmp_path: Path) -> None:
    place = ("--quick", "--output", str(tmp_path))
    command("bench", "couplings", *place)
    path = tmp_path / "couplings.json"
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows.keys() == METHODS.keys()
    assert rows[REFERENCE]["time_to_stored"] == 1
    assert rows[REFERENCE]["change_in_training"] == rows["BDIA"]["change_in_eval"] == 0
    assert 0 < rows["momentum, gamma 1/64"]["change_in_eval"] < rows["Dr2Net, 1 and 1/64"]["change_in_eval"]
    assert rows["Dr2Net, 1 and 1/64"]["change_in_eval"] < rows["additive"]["change_in_eval"]
    assert [rows[name]["bits"] for name in ("BDIA", "Dr2Net, 7/8 and 1/8", "additive", REFERENCE)] == [1, 3, 0, None]
    before = path.stat().st_mtime_ns
    done = command("bench", "couplings", *place, "--resume")
    assert path.stat().st_mtime_ns == before
    assert "BDIA" in done.out
    refused = command("bench", "couplings", *place, "--resume", "--layers", "1")
    assert refused.status != 0
    assert "was measured with other settings" in refused.err


def test_more_seeds_are_added_to_those_that_are_there(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(seed: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        measured.append(seed)
        figures = {
            "change_in_training": 0.0,
            "change_in_eval": 0.0,
            "bits": 1.0,
            "time_to_stored": 1.0,
            "accuracy": 50.0,
        }
        return [{"seed": seed, "method": name, **figures} for name in METHODS]

    monkeypatch.setattr("momentumnet.cli.bench.couplings.measure", measure)
    for seeds in ("1", "3"):
        command("bench", "couplings", "--seeds", seeds, "--resume", "--output", str(tmp_path))
    assert measured == [0, 1, 2]
    assert "standard deviations of 3 seeds" in (tmp_path / "couplings.md").read_text()
