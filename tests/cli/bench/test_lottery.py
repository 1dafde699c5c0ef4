from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from momentumnet.bench.lottery.training import Lottery
from momentumnet.prune import TrainingLog
from tests.cli.bench.studies import rows, run

PLAIN = ("--models", "lenet300", "--methods", "kaiming", "--seeds", "1")


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "lottery")


def test_tables_have_mean_and_deviation_of_every_arm_and_sparsity(bench: Callable[..., Any]) -> None:
    found = rows(bench("--models", "lenet300,resnet8_bn", "--methods", "xavier,kaiming", "--seeds", "2"))
    keys = [(row["model"], row["method"], row["seed"]) for row in found]
    assert keys == [(m, w, s) for m in ("lenet300", "resnet8_bn") for w in ("xavier", "kaiming") for s in (0, 1)]
    arms = [(training["round"], training["arm"]) for training in found[0]["trainings"]]
    controls = ("ticket", "reinitialised", "random mask")
    assert arms == [(0, "ticket"), *((number, arm) for number in (1, 2) for arm in controls)]
    table = Path("out", "lottery-digits.md").read_text()
    own = [row["trainings"] for row in found[:2]]
    for number, sparsity in ((1, "33.1"), (2, "55.2")):
        cells = []
        for arm in controls:
            values = [t["accuracies"][-1][1] for row in own for t in row if (t["round"], t["arm"]) == (number, arm)]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        assert f"|  |  | {sparsity} % | {' | '.join(cells)} | 2 |" in table
    assert "64 training and 50 test images of 8 x 8" in table
    assert Path("out", "lottery-digits.png").stat().st_size > 10_000


def test_killed_inside_of_a_row_goes_on_there(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(bench(*PLAIN))
    real, trained = Lottery._train, []

    def interrupted(self: Lottery, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        real(self, model, log, advance)
        trained.append(log)
        if len(trained) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lottery, "_train", interrupted)
        stopped = bench(*PLAIN, "--output", "other")
    assert stopped.status == 130

    def counted(self: Lottery, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        trained.append(log)
        real(self, model, log, advance)

    monkeypatch.setattr(Lottery, "_train", counted)
    assert rows(bench(*PLAIN, "--output", "other")) == whole
    assert len(trained) == 4 + 4  # 7 trainings, of which 3 were done


def test_restart_trains_anew(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = rows(bench(*PLAIN))
    real, trained = Lottery._train, []

    def counted(self: Lottery, *arguments: Any) -> None:
        trained.append(arguments)
        real(self, *arguments)

    monkeypatch.setattr(Lottery, "_train", counted)
    assert rows(bench(*PLAIN, "--restart")) == first
    assert len(trained) == 7


def test_rewound_tickets_begin_with_the_weights_of_that_epoch(bench: Callable[..., Any]) -> None:
    (row,) = rows(bench(*PLAIN[2:], "--models", "resnet8_bn", "--rewind-epochs", "1"))
    steps = {(t["round"], t["arm"]): [step for step, _ in t["accuracies"]] for t in row["trainings"]}
    assert steps[0, "ticket"] == [2, 4]
    assert steps[1, "ticket"] == steps[1, "random mask"] == [4]
    assert steps[1, "reinitialised"] == [2, 4]


def test_settings_are_part_of_the_rows_and_a_later_command_adds_some(bench: Callable[..., Any]) -> None:
    plain = ("--models", "resnet8w4_bn,lenet300", "--methods", "xavier_normal", "--seeds", "1")
    first = rows(bench(*plain, "--rounds", "1", "--lr", "0.1,0.01", "--controls", "random-mask"))
    assert [(row["model"], row["lr"]) for row in first] == [
        ("resnet8w4_bn", 0.1),
        ("resnet8w4_bn", 0.01),
        ("lenet300", 1.2e-3),
    ]
    more = ("--warmup-epochs", "1", "--rewind-epochs", "0,1", "--dense-epochs", "1,2", "--models", "resnet8w4_bn")
    found = rows(bench(*plain, *more, "--rounds", "1", "--controls", "random-mask"))
    keys = ("lr", "warmup_epochs", "rewind_epochs", "dense_epochs")
    settings = [tuple(row[key] for key in keys) for row in found]
    assert settings == [(0.1, 1, rewind, dense) for rewind in (0, 1) for dense in (1, 2)] + [
        (rate, 0, 0, 2) for rate in (0.1, 0.01, 1.2e-3)
    ]
    assert [len(row["trainings"][0]["accuracies"]) for row in found] == [1, 2, 1, 2, 2, 2, 2]
    assert Path("out", "lottery-digits-dense.png").stat().st_size > 10_000
    assert Path("out", "lottery-digits-networks.png").exists() is False  # lenet300 was not trained with these settings


def test_quick_compares_networks(bench: Callable[..., Any], command: Callable[..., Any]) -> None:
    quick = ("--quick", "--models", "resnet8w4_bn,resnet14w4_bn", "--methods", "kaiming", "--batch-size", "64")
    done = command("bench", "lottery", *quick, "--output", "out", "--json")
    assert [row["model"] for row in rows(done)] == ["resnet8w4_bn", "resnet14w4_bn"]
    assert Path("out", "lottery-digits-networks.png").stat().st_size > 10_000
