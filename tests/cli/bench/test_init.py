from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from momentumnet.bench import training
from momentumnet.bench.init.methods import METHODS, Method
from momentumnet.bench.init.training import Training
from momentumnet.bench.initialisations import Task
from momentumnet.init import InitReport, kaiming_
from tests.cli.bench.trainings import TINY, rows_without

rows = partial(rows_without, ("seconds", "init_seconds"))


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "init", *TINY, "--output", "out", "--json", *arguments)


def test_table_has_mean_and_deviation_of_every_model_and_method(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8,vgg8_bn", "--methods", "kaiming,warmup", "--seeds", "3")
    found = rows(done)
    keys = [(row["model"], row["method"], row["seed"]) for row in found]
    assert keys == [(m, w, s) for m in ("resnet8", "vgg8_bn") for w in ("kaiming", "warmup") for s in (0, 1, 2)]
    table = Path("out", "init-digits.md").read_text()
    for method, epochs, first in (("kaiming", 2, 0), ("warmup", 3, 1)):
        own = [row for row in found if row["model"] == "vgg8_bn" and row["method"] == method]
        accuracies = [row["accuracies"] for row in own]
        assert [len(values) for values in accuracies] == [epochs] * 3
        cells = []
        for values in ([values[first] for values in accuracies], [max(values) for values in accuracies]):
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        assert f"| {method} | {cells[0]} | {cells[1]} | 3 |" in table
        assert cells[0] in done.err
    assert "64 training and 50 test images of 8 x 8" in table


def test_rows_differ_by_seed_and_repeat(bench: Callable[..., Any]) -> None:
    arguments = ("--models", "resnet8_bn", "--methods", "kaiming", "--seeds", "2")
    first = rows(bench(*arguments))
    again = rows(bench(*arguments, "--restart"))
    assert first == again
    assert first[0]["losses"] != first[1]["losses"]


def test_resumed_table_is_that_of_an_uninterrupted_run(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--models", "resnet8", "--methods", "kaiming,constant", "--seeds", "2")
    whole = rows(bench(*arguments))
    real, trained = Training._train, []

    def interrupted(self: Training, model: nn.Module, advance: Callable[[], object]) -> None:
        real(self, model, advance)
        trained.append(self.seed)
        if len(trained) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train", interrupted)
        stopped = bench(*arguments, "--restart")
    assert stopped.status == 130
    assert "the same command goes on after the rows that are done" in stopped.err
    assert len(json.loads(Path("out", "init-digits.json").read_text())["rows"]) == 2
    resumed = bench(*arguments)
    assert "2 of 4 rows are done already" in resumed.err
    assert rows(resumed) == whole


def test_more_seeds_are_added_to_what_is_there(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--models", "resnet8", "--methods", "kaiming")
    first = rows(bench(*arguments, "--seeds", "1"))
    trained = []
    real = Training.row
    monkeypatch.setattr(Training, "row", lambda self, advance: trained.append(self.seed) or real(self, advance))
    assert rows(bench(*arguments, "--seeds", "2"))[0] == first[0]
    assert trained == [1]


def test_other_settings_are_refused_until_told_to_restart(bench: Callable[..., Any]) -> None:
    arguments = ("--models", "resnet8", "--methods", "kaiming", "--seeds", "1")
    assert bench(*arguments).status == 0
    done = bench(*arguments, "--lr", "0.2")
    assert done.status == 2
    assert "was measured with other settings" in done.err
    assert "--restart" in done.err
    assert rows(bench(*arguments, "--lr", "0.2", "--restart"))[0]["seed"] == 0


def test_row_that_fails_is_shown_and_the_others_go_on(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(model: nn.Module, task: Task) -> InitReport:
        if torch.initial_seed() == 1:
            raise ValueError("no residual stream found")
        return kaiming_(model)

    monkeypatch.setitem(METHODS, "fixup", Method(sometimes))
    done = bench("--models", "resnet8", "--methods", "fixup,kaiming", "--seeds", "3")
    found = rows(done)
    assert [row.get("error") for row in found] == [None, "no residual stream found", None, None, None, None]
    assert (found[1]["acc_1"], found[1]["accuracies"]) == (None, [])
    table = Path("out", "init-digits.md").read_text()
    means = statistics.mean(row["acc_1"] for row in (found[0], found[2]))
    assert f"| resnet8 | fixup | {means:.2f} ± " in table
    assert "| 2 of 3 |" in table
    assert "resnet8, fixup, seed 1: no residual stream found" in table
    assert "resnet8, fixup, seed 1: no residual stream found" in done.err


def test_networks_that_an_initialisation_is_not_for_are_no_failures(bench: Callable[..., Any]) -> None:
    done = bench("--models", "vgg8", "--methods", "fixup", "--seeds", "2")
    assert all(row["error"].startswith("no residual block found") for row in rows(done))
    table = Path("out", "init-digits.md").read_text()
    assert "| vgg8 | fixup | – | – | 0 of 2 |" in table
    assert table.count("Fixup scales residual branches, and this network has none.") == 1
    assert "vgg8, fixup, seeds" not in table


def test_seeds_that_fail_alike_share_a_line(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise ValueError("no residual stream found")

    monkeypatch.setitem(METHODS, "fixup", Method(never))
    bench("--models", "resnet8", "--methods", "fixup", "--seeds", "2")
    table = Path("out", "init-digits.md").read_text()
    assert "\nresnet8, fixup, seeds 0, 1: no residual stream found\n" in table
    assert "| resnet8 | fixup | fails | fails | 0 of 2 |" in table


def test_diverged_training_is_an_error_of_its_row(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8_bn", "--methods", "kaiming", "--seeds", "1", "--lr", "1e30")
    assert rows(done)[0]["error"] == "diverged: loss nan in step 2 of epoch 1"
    assert "| resnet8_bn | kaiming | fails | fails | 0 of 1 |" in Path("out", "init-digits.md").read_text()


def test_unexpected_error_is_no_row(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build", lambda *_, **__: [].nothing)
    with pytest.raises(AttributeError):
        bench("--models", "resnet8", "--methods", "kaiming", "--seeds", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "resnet20,resnet21"), "there is no resnet of depth 21; there are resnetN with N = 6 n + 2"),
        (("--methods", "kaiming,xavier"), "'xavier' is not a method; there are kaiming, constant, warmup, metainit"),
        (("--data", "missing.npz"), "'missing.npz' is neither digits, cifar10 nor a .npz file that exists"),
    ],
)
def test_unknown_names_are_answered_with_what_there_is(
    bench: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())


def test_images_that_cannot_be_used(bench: Callable[..., Any]) -> None:
    done = bench("--train-samples", "31")
    assert (done.status, "31 training images are less than one batch of 32" in done.err) == (2, True)
    done = bench("--data", "cifar10")
    assert (done.status, "CIFAR-10 could not be downloaded (no network)" in done.err) == (2, True)
    np.savez("other.npz", x_train=np.zeros(3))
    done = bench("--data", "other.npz")
    assert (done.status, "lacks y_train" in done.err) == (2, True)


def test_images_from_a_file(bench: Callable[..., Any]) -> None:
    images = np.random.default_rng(0).integers(256, size=(80, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(80) % 10
    np.savez("noise.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert len(rows(bench("--models", "resnet8", "--methods", "kaiming", "--seeds", "1", "--data", "noise.npz"))) == 1
    settings = json.loads(Path("out", "init-noise.json").read_text())["settings"]
    assert (settings["images"], settings["train_samples"], settings["augmented"]) == ([3, 32, 32], 64, True)


def test_gradinit_itself_runs_in_a_row(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8", "--methods", "gradinit", "--seeds", "1", "--init-steps", "2")
    row = rows(done)[0]
    assert "error" not in row
    assert len(row["accuracies"]) == 2
