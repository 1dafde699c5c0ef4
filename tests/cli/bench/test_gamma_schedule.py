"""The benchmark of gamma's schedules: a row for each network, final value, length and seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.bench.studies import STUDIES, rows, run


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "gamma-schedule")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings without their memory, where a test is not about it."""
    STUDIES["gamma-schedule"].simplified(monkeypatch)


def test_quick_run_has_a_row_for_each_case(command: Callable[..., Any]) -> None:
    done = command("bench", "gamma-schedule", "--quick", "--json")
    found = rows(done)
    cases = [("momentum", "0"), ("momentum", "9/10"), ("dr2net", "9/10")]  # beta cannot be 0
    assert [(row["length"], row["model"], row["method"], row["final"]) for row in found] == [
        (length, model, *case) for length in ("0", "1") for model in ("resnet20_bn", "decoder2") for case in cases
    ]
    assert [row["error"] for row in found if "error" in row] == []
    for row in found:
        assert row["most_peak_bytes"] >= row["peak_bytes"] > row["saved_bytes"] > 0
    for model in ("resnet20_bn", "decoder2"):
        held = {(row["final"], row["length"]): row["saved_bytes"] for row in found if row["model"] == model}
        assert held["9/10", "0"] < held["0", "0"]
    assert Path("runs", "bench", "gamma-schedule-digits.png").stat().st_size > 0


@pytest.mark.usefixtures("unmeasured")
def test_tables_have_mean_and_deviation_by_final_value_and_length(bench: Callable[..., Any]) -> None:
    found = rows(bench("--methods", "momentum", "--finals", "9/10,1/8", "--lengths", "1,0", "--seeds", "2"))
    table = Path("out", "gamma-schedule-digits.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith(("| 1/8", "| 9/10"))]
    places = [("1/8", "0", "at once"), ("9/10", "0", "at once"), ("9/10", "1", "in all steps")]
    assert len(lines) == len(places)
    for line, (final, length, words) in zip(lines, places, strict=True):
        scores = [row["score"] for row in found if (row["final"], row["length"]) == (final, length)]
        figures = f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"
        memory = " | ".join(f"{mib}.00 ± 0.00" for mib in (3, 4, 5, 6))  # peak, most peak, held, most held
        assert line == f"| {final} | {words} | {figures} | {memory} | 2 |"


@pytest.mark.usefixtures("unmeasured")
def test_own_texts_are_read(bench: Callable[..., Any]) -> None:
    Path("own.txt").write_text("All that is gold does not glitter. " * 40)
    done = bench("--text", "own.txt", "--finals", "1/2", "--lengths", "0", "--seeds", "1", "--methods", "momentum")
    settings = json.loads(done.out)["settings"]
    assert (settings["text"], settings["pretraining_text"]) == ("own.txt", "Python's reference")


@pytest.mark.usefixtures("unmeasured")
def test_a_geometric_schedule_has_rows_of_its_own_and_none_that_goes_to_0(bench: Callable[..., Any]) -> None:
    few = ("--finals", "0,1/2", "--lengths", "0,1", "--seeds", "1", "--shape", "geometric")
    done = bench(*few)
    found = [(row["method"], row["final"], row["length"]) for row in rows(done)]
    assert found == [
        ("momentum", "0", "0"),
        ("momentum", "1/2", "0"),
        ("dr2net", "1/2", "0"),
        ("momentum", "1/2", "1"),
        ("dr2net", "1/2", "1"),
    ]
    assert json.loads(done.out)["settings"]["shape"] == "geometric"
    assert "changes, geometrically in the steps" in Path("out", "gamma-schedule-digits.md").read_text()
    linear = bench(*few[:-2])
    assert (linear.status, "was measured with other settings" in linear.err) == (2, True)
    assert "shape" not in json.loads(bench(*few[:-2], "--restart").out)["settings"]
    assert "changes, linearly in the steps" in Path("out", "gamma-schedule-digits.md").read_text()
