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

from momentumnet.bench.init.methods import METHODS, Method
from momentumnet.bench.trainings import training
from momentumnet.bench.trainings.initialisations import Task
from momentumnet.init import InitReport, kaiming_
from tests.cli.bench.studies import rows, run


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "init")


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


def test_unexpected_error_is_no_row(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build", lambda *_, **__: [].nothing)
    with pytest.raises(AttributeError):
        bench("--models", "resnet8", "--methods", "kaiming", "--seeds", "1")


def test_archive_without_labels_is_refused(bench: Callable[..., Any]) -> None:
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
