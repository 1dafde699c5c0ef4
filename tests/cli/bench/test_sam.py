from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.sam import training as sam_training
from momentumnet.bench.sam.methods import METHODS
from momentumnet.bench.sam.tables import curves
from momentumnet.bench.sam.training import Training
from tests.cli.bench.studies import STUDIES, rows, run


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "sam")


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landscapes without second derivatives, where a test is not about them."""
    STUDIES["sam"].simplified(monkeypatch)


@pytest.mark.usefixtures("flat")
def test_tables_have_mean_and_deviation_by_noise_and_method(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8_bn", "--noise", "0,40", "--methods", "sgd,sam", "--seeds", "2")
    found = rows(done)
    keys = [(row["noise"], row["method"], row["seed"]) for row in found]
    assert keys == [(n, m, s) for n in (0, 40) for s in (0, 1) for m in ("sgd", "sam")]
    right, wrong = ([row["losses"] for row in found if row["noise"] == noise] for noise in (0, 40))
    assert all(one != other for one, other in zip(right, wrong, strict=True))
    file = Path("out", "sam-digits.md").read_text()
    tables = file.split("# ")[1:]
    titles = [f"resnet8_bn, {noise} % of the training labels wrong" for noise in (0, 40)]
    assert [table.partition("\n")[0] for table in tables] == titles
    for noise, table in zip((0, 40), tables, strict=True):
        for method, passes in (("sgd", 2), ("sam", 4)):
            own = [row for row in found if (row["noise"], row["method"]) == (noise, method)]
            figures = []
            for accuracies in ([row["accuracies"][-1] for row in own], [max(row["accuracies"]) for row in own]):
                figures.append(f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}")
            figures.append(f"{statistics.mean(row['sharpness'] for row in own):.4f}")
            figures.append(f"{statistics.mean(row['eigenvalue'] for row in own):.2f}")
            assert f"| {method} | {passes} | {' | '.join(figures)} | " in table
            assert figures[0].partition(" ")[0] in done.err
    assert "64 training and 50 test images of 8 x 8" in file
    assert "on 64 training images" in file
    assert Path("out", "sam-digits.png").stat().st_size > 0


def test_figure_shows_the_accuracies_at_the_end() -> None:
    rows = [
        {"model": "m", "method": method, "noise": noise, "seed": seed, "acc_final": 50 + noise + seed, "acc_best": 99.0}
        for method in ("sgd", "sam")
        for noise in (0, 40)
        for seed in (0, 1)
    ]
    line = {0: [50, 51], 40: [90, 91]}
    assert curves([*rows, {**rows[0], "seed": 2, "error": "diverged"}]) == {"m": {"sgd": line, "sam": line}}


@pytest.mark.usefixtures("flat")
def test_ratio_of_steps_is_to_sgd_in_the_same_table(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        ("sgd", 0): [1.0, 9.0, 2.0],
        ("sam", 0): [5.0, 4.0, 30.0],
        ("sgd", 40): [4.0] * 3,
        ("sam", 40): [6.0] * 3,
    }
    real = Training.row

    def timed(self: Training, advance: Callable[[], object]) -> dict[str, Any]:
        method = "sgd" if self.method is METHODS["sgd"] else "sam"
        return {**real(self, advance), "step_seconds": seconds[method, int(self.noise)][self.seed]}

    monkeypatch.setattr(Training, "row", timed)
    arguments = ("--models", "resnet8_bn", "--noise", "0,40", "--seeds", "3", "--epochs", "1")
    assert bench(*arguments, "--methods", "sgd,sam").status == 0
    right, wrong = Path("out", "sam-digits.md").read_text().split("# ")[1:]
    assert "| 1.00 | 3 |" in right
    assert "| 2.50 | 3 |" in right  # medians 2 and 5
    assert "| 1.50 | 3 |" in wrong
    alone = bench(*arguments, "--methods", "sam", "--output", "alone")
    assert alone.status == 0
    assert " |  | 3 |" in Path("alone", "sam-digits.md").read_text()


def test_landscape_itself_runs_in_a_row(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_training, "PROBES", 8)
    (row,) = rows(bench("--models", "resnet8_bn", "--noise", "20", "--methods", "sam", "--seeds", "1"))
    assert row["sharpness"] > 0
    assert row["eigenvalue"] > 0


@pytest.mark.usefixtures("flat")
def test_quick_is_quick(command: Callable[..., Any]) -> None:
    radii = ("--rho", "0.1", "--asam-rho", "0.7")
    done = command("bench", "sam", "--quick", "--methods", "sgd,sgd_2x", *radii, "--json")
    found = rows(done)
    assert [(row["noise"], row["method"]) for row in found] == [
        (n, m) for n in (0, 20, 40, 60) for m in ("sgd", "sgd_2x")
    ]
    assert {(row["model"], row["seed"], row["epochs"]) for row in found} == {("resnet8_bn", 0, 1), ("resnet8_bn", 0, 2)}
    settings = json.loads(done.out)["settings"]
    assert (settings["train_samples"], settings["test_samples"]) == (256, 256)
    assert (settings["rho"], settings["asam_rho"]) == (0.1, 0.7)
    assert Path("runs", "bench", "sam-digits.md").is_file()
