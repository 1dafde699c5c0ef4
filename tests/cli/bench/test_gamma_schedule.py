"""The benchmark of gamma's schedules: a row for each network, final value, length and seed, and a run that goes on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.gamma_schedule.training import Training
from tests.cli.bench.trainings import TINY, rows_without

SMALL = (*TINY, "--batch-size", "16", "--pretraining-epochs", "1", "--models", "decoder2", "--window", "8")
rows = partial(rows_without, ("seconds", "step_seconds"))


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "gamma-schedule", *SMALL, "--output", "out", "--json", *arguments)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings without their memory, where a test is not about it."""
    bytes_of = ("peak_bytes", "saved_bytes", "most_peak_bytes", "most_saved_bytes")
    monkeypatch.setattr(Training, "_memory", lambda *_: dict.fromkeys(bytes_of, 3 << 20))


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
        assert line.startswith(f"| {final} | {words} | {figures} | 3.00 ± 0.00 |")


@pytest.mark.usefixtures("unmeasured")
def test_a_run_goes_on_and_takes_more_cases(bench: Callable[..., Any]) -> None:
    few = ("--methods", "momentum", "--finals", "1/8,1/2", "--seeds", "1")
    first = rows(bench(*few, "--lengths", "0"))
    assert [row["final"] for row in first] == ["1/8", "1/2"]
    done = bench(*few, "--lengths", "0,1")
    assert "2 of 3 rows are done already" in done.err  # at 1/8, where gamma starts, there is one length
    assert [row for row in rows(done) if row["length"] == "0"] == first
    assert rows(bench(*few, "--lengths", "0,1", "--restart")) == rows(done)
    refused = bench(*few, "--lengths", "0", "--start", "1/64")
    assert (refused.status, "was measured with other settings" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "decoder1"), "'decoder1' is not a network of this benchmark; there are resnetN_bn"),
        (("--models", "vgg11_bn"), "'vgg11_bn' is not a network of this benchmark"),
        (("--models", "resnet8_bn"), "with N = 6 n + 2 from 14 on"),
        (("--methods", "bdia"), "'bdia' is not a method; there are momentum, dr2net"),
        (("--finals", "1/2,1"), "1 is not in [0, 1)"),
        (("--lengths", "0,2"), "2 is not in [0, 1]: 0 is at once, 1 all steps"),
        (("--lengths", "half"), "'half' is not a share; write for example 0,1/4,1/2,1"),
        (("--text", "nothing.txt"), "there is no file 'nothing.txt'"),
        (("--window", "1"), "a --window of 1 bytes has no next byte; give 2 or more"),
        (("--window", "100000"), "less than 10 windows of 100000"),
        (("--methods", "dr2net", "--finals", "0"), "dr2net alone has no final value 0"),
        (
            ("--batch-size", "60"),
            "of the first half of the classes, on which ResNets are pretrained, are less than one",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_what_was_expected(
    bench: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())


@pytest.mark.usefixtures("unmeasured")
def test_own_texts_are_read(bench: Callable[..., Any]) -> None:
    Path("own.txt").write_text("All that is gold does not glitter. " * 40)
    done = bench("--text", "own.txt", "--finals", "1/2", "--lengths", "0", "--seeds", "1", "--methods", "momentum")
    settings = json.loads(done.out)["settings"]
    assert (settings["text"], settings["pretraining_text"]) == ("own.txt", "Python's reference")
