from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from momentumnet.bench.sam import training as sam_training
from momentumnet.bench.sam.methods import METHODS
from momentumnet.bench.sam.training import Training
from tests.cli.bench.trainings import TINY, rows_without

SMALL = ("--models", "resnet8_bn", "--noise", "20")
rows = partial(rows_without, ("seconds", "step_seconds"))


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "sam", *TINY, "--output", "out", "--json", *arguments)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landscapes without second derivatives, where a test is not about them."""
    monkeypatch.setattr(
        Training, "_landscape", lambda self, _: {"sharpness": 0.125 + self.seed, "eigenvalue": 2.5 + self.noise}
    )


@pytest.mark.usefixtures("flat")
def test_tables_have_mean_and_deviation_by_noise_and_method(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8_bn", "--noise", "0,40", "--methods", "sgd,sam", "--seeds", "2")
    found = rows(done)
    keys = [(row["noise"], row["method"], row["seed"]) for row in found]
    assert keys == [(n, m, s) for n in (0, 40) for s in (0, 1) for m in ("sgd", "sam")]
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


@pytest.mark.usefixtures("flat")
def test_resumed_tables_are_those_of_an_uninterrupted_run(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "--methods", "sgd,sam", "--seeds", "2")
    whole = rows(bench(*arguments))
    assert rows(bench(*arguments, "--restart")) == whole
    real, trained = Training._trained, []

    def interrupted(self: Training, advance: Callable[[], object]) -> nn.Module:
        model = real(self, advance)
        trained.append(self.seed)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return model

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_trained", interrupted)
        stopped = bench(*arguments, "--restart")
    assert stopped.status == 130
    assert "the same command goes on after the rows that are done" in stopped.err
    resumed = bench(*arguments)
    assert "2 of 4 rows are done already" in resumed.err
    assert rows(resumed) == whole
    more = bench("--models", "resnet8_bn", "--noise", "20,0", "--methods", "sgd,sam", "--seeds", "2")
    assert "4 of 8 rows are done already" in more.err
    assert rows(more)[:4] == whole


@pytest.mark.usefixtures("flat")
def test_other_radius_is_refused_until_told_to_restart(bench: Callable[..., Any]) -> None:
    arguments = (*SMALL, "--methods", "sam", "--seeds", "1")
    first = rows(bench(*arguments))
    done = bench(*arguments, "--rho", "0.2")
    assert (done.status, "was measured with other settings" in done.err) == (2, True)
    assert rows(bench(*arguments, "--rho", "0.2", "--restart"))[0]["losses"] != first[0]["losses"]


def test_row_that_diverges_is_shown_and_the_others_go_on(bench: Callable[..., Any]) -> None:
    done = bench(*SMALL, "--methods", "sam,sgd", "--seeds", "1", "--lr", "1e30")
    assert [row["error"] for row in rows(done)] == ["diverged: loss nan in step 2 of epoch 1"] * 2
    table = Path("out", "sam-digits.md").read_text()
    assert "| sam | 4 | fails | fails | fails | fails |  | 0 of 1 |" in table
    assert "resnet8_bn, 20 % wrong labels, sam, seed 0: diverged: loss nan" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "sgd,adam"), "'adam' is not a method; there are sgd, sgd_2x, extragradient, sam, asam"),
        (("--noise", "20,100"), "100 is not at least 0 and less than 100 percent"),
        (("--noise", "some"), "'some' is not a number; write for example 20"),
        (("--rho", "-1"), "-1 is not a finite number of at least 0"),
        (("--asam-rho", "wide"), "'wide' is not a number"),
    ],
)
def test_wrong_arguments_are_answered_with_what_was_expected(
    bench: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())


def test_landscape_itself_runs_in_a_row(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_training, "PROBES", 8)
    (row,) = rows(bench(*SMALL, "--methods", "sam", "--seeds", "1"))
    assert row["sharpness"] > 0
    assert row["eigenvalue"] > 0


@pytest.mark.usefixtures("flat")
def test_quick_is_quick(command: Callable[..., Any]) -> None:
    done = command("bench", "sam", "--quick", "--methods", "sgd,sgd_2x", "--json")
    found = rows(done)
    assert [(row["noise"], row["method"]) for row in found] == [
        (n, m) for n in (0, 20, 40, 60) for m in ("sgd", "sgd_2x")
    ]
    assert {(row["model"], row["seed"], row["epochs"]) for row in found} == {("resnet8_bn", 0, 1), ("resnet8_bn", 0, 2)}
    settings = json.loads(done.out)["settings"]
    assert (settings["train_samples"], settings["test_samples"]) == (256, 256)
    assert Path("runs", "bench", "sam-digits.md").is_file()
