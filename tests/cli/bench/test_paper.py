from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.paper.crossing import Crossing
from momentumnet.bench.paper.linear_fits import EPSILONS, TARGETS
from tests.cli.bench.studies import rows

MODELS = ["ResNet", "ResNet, long steps", "Momentum ResNet"]


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "paper", "--quick", "--output", "out", "--json", *arguments)


def test_table_has_mean_and_deviation_and_every_hyper_parameter(bench: Callable[..., Any]) -> None:
    found = rows(bench("--seeds", "3"))
    assert [(row["model"], row["seed"]) for row in found] == [(model, seed) for model in MODELS for seed in range(3)]
    text = Path("out", "paper-crossing.md").read_text()
    for model in MODELS:
        errors = [row["error_on_grid"] for row in found if row["model"] == model]
        assert f"| {model} | {statistics.mean(errors):.4f} ± {statistics.stdev(errors):.4f} | " in text
    for said in ("steps: 10;", "points: 20;", "depth: 15;", "gamma: 0.99;", "0.01 (ResNet)", "target: -x**3;"):
        assert said in text
    assert Path("out", "paper-crossing.png").stat().st_size > 0


def test_resumed_rows_are_those_of_an_uninterrupted_run(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows(bench())
    real = Crossing.rows

    def interrupted(self: Crossing, model: str, seeds: Sequence[int], advance: Callable[[], object]) -> Any:
        if model == MODELS[1]:
            raise KeyboardInterrupt
        return real(self, model, seeds, advance)

    with monkeypatch.context() as patch:
        patch.setattr(Crossing, "rows", interrupted)
        assert bench().status == 130
    trained = []

    def counted(self: Crossing, model: str, seeds: Sequence[int], advance: Callable[[], object]) -> Any:
        trained.append((model, list(seeds)))
        return real(self, model, seeds, advance)

    monkeypatch.setattr(Crossing, "rows", counted)
    assert rows(bench("--resume")) == whole
    assert trained == [(model, [0, 1]) for model in MODELS[1:]]
    more = rows(bench("--resume", "--seeds", "3"))
    assert trained[2:] == [(model, [2]) for model in MODELS]
    assert [row for row in more if row["seed"] < 2] == whole
    done = bench("--resume", "--steps", "11")
    assert (done.status, "was measured with other settings" in done.err) == (2, True)


@pytest.mark.parametrize("experiment", ["rings", "point-clouds"])
def test_rings_are_told_apart_or_not(bench: Callable[..., Any], experiment: str) -> None:
    found = rows(bench("--experiment", experiment, "--steps", "2"))
    assert {row["model"] for row in found} == {"ResNet", "Momentum ResNet"}
    assert all(0 <= row["accuracy"] <= 100 for row in found)
    assert Path("out", f"paper-{experiment}.png").stat().st_size > 0


def test_linear_maps_have_a_row_for_each_map_and_seed(bench: Callable[..., Any]) -> None:
    found = rows(bench("--experiment", "linear", "--steps", "2", "--seeds", "2"))
    assert len(found) == 2 * len(TARGETS) * len(EPSILONS)
    text = Path("out", "paper-linear.md").read_text()
    assert "| swap | 1, -1 | no: " in text
    assert "| 0.3 swap | 0.3, -0.3 | no: " in text
    assert text.count("| yes: ") + text.count("| no: ") == len(TARGETS) * len(EPSILONS)
    assert Path("out", "paper-linear.png").stat().st_size > 0


def test_wrong_arguments_are_answered_with_what_was_expected(bench: Callable[..., Any]) -> None:
    done = bench("--experiment", "squares")
    assert (done.status, "crossing" in done.err) == (2, True)
    assert bench("--steps", "0").status == 2


def test_points_of_linear_maps_are_refused(command: Callable[..., Any]) -> None:
    done = command("bench", "paper", "--experiment", "linear", "--points", "7")
    assert done.status == 2
    assert "--points is for crossing, rings, point-clouds" in done.err
