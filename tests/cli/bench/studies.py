"""The benchmarks that train from several seeds, each in runs that take a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from momentumnet.bench.gamma_schedule.training import Training as GammaTraining
from momentumnet.bench.init.training import Training as InitTraining
from momentumnet.bench.init_text.training import Training as TextTraining
from momentumnet.bench.lottery.training import Lottery
from momentumnet.bench.quality.training import Training as QualityTraining
from momentumnet.bench.sam.training import Training as SamTraining
from momentumnet.bench.sharpness import training as sharpness_training
from momentumnet.bench.sharpness.training import Trajectory

TINY = ("--train-samples", "64", "--test-samples", "50", "--batch-size", "32", "--epochs", "2")
TEXT = "the quick brown fox jumps over the lazy dog; " * 20  # of ``foxes.txt``
DECODER = ("--depth", "1", "--width", "16", "--length", "8", "--batch-size", "4", "--steps", "4", "--warmup-steps", "2")
# A single choice of each option of init-text: there is nothing to search.
UNSEARCHED = ("--taus", "0.01", "--etas", "1", "--falls", "10", "--metainit-taus", "0.01", "--rates", "0.01")
TIMES = ("seconds", "step_seconds", "epoch_seconds", "init_seconds", "step_ratio")


def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out."""


def _sam_without_landscape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SamTraining, "_landscape", lambda self, _: {"sharpness": 0.125 + self.seed, "eigenvalue": 2.5 + self.noise}
    )


def _sharpness_without_landscape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landscapes that are computed from a parameter."""

    def measured(model: nn.Module, batch: tuple[Tensor, Tensor], ascents: int) -> dict[str, Any]:
        value = 1 + abs(float(next(model.parameters()).detach().flatten()[0]))
        eigenvalues = [10 * value, 4.0, 3.0, 2.0, value]
        return {"first_step": value / 2, "sharpness": value, "eigenvalues": eigenvalues, "converged": value > 0}

    monkeypatch.setattr(sharpness_training, "measure", measured)


def _without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tunings whose memory is as large as its place in the table."""
    names = ("peak_bytes", "most_peak_bytes", "saved_bytes", "most_saved_bytes")
    monkeypatch.setattr(
        GammaTraining, "_memory", lambda *_: {name: place << 20 for place, name in enumerate(names, start=3)}
    )


@dataclass(frozen=True)
class Study:
    """A benchmark and a run of it.

    Attributes:
        options: What makes it small.
        training: What makes a row, by its method ``row``.
        few: The options of a run of ``rows`` rows.
        rows: How many they are.
        more: Further options, with which there are ``all_rows``, those of ``few`` among them.
        all_rows: How many they are.
        other: Further options, of which rows do not stand beside those of ``few``.
        simplified: Leaves out what takes long and is not what resuming is about.
    """

    options: tuple[str, ...]
    training: type[Any]
    few: tuple[str, ...]
    rows: int
    more: tuple[str, ...]
    all_rows: int
    other: tuple[str, ...]
    simplified: Callable[[pytest.MonkeyPatch], None] = _as_it_is


STUDIES = {
    "init": Study(
        options=TINY,
        training=InitTraining,
        few=("--models", "resnet8", "--methods", "kaiming,constant", "--seeds", "1"),
        rows=2,
        more=("--seeds", "2"),
        all_rows=4,
        other=("--lr", "0.2"),
    ),
    "sam": Study(
        options=TINY,
        training=SamTraining,
        few=("--models", "resnet8_bn", "--noise", "20", "--methods", "sgd,sam", "--seeds", "1"),
        rows=2,
        more=("--noise", "20,0"),
        all_rows=4,
        other=("--rho", "0.2"),
        simplified=_sam_without_landscape,
    ),
    "sharpness": Study(
        options=(*TINY, "--models", "lenet300", "--measurements", "2", "--probes", "8"),
        training=Trajectory,
        few=("--methods", "sam", "--seeds", "1", "--rhos", "0.1"),
        rows=2,
        more=("--rhos", "0.1,0.5"),
        all_rows=3,
        other=("--rho", "0.1"),
        simplified=_sharpness_without_landscape,
    ),
    "quality": Study(
        options=TINY,
        training=QualityTraining,
        few=("--models", "vit2x16", "--methods", "original,converted", "--seeds", "1"),
        rows=2,
        more=("--methods", "original,scratch,continued,converted,scheduled"),
        all_rows=5,
        other=("--adam-lr", "0.1"),
    ),
    "gamma-schedule": Study(
        options=(*TINY, "--batch-size", "16", "--pretraining-epochs", "1", "--models", "decoder2", "--window", "8"),
        training=GammaTraining,
        few=("--methods", "momentum", "--finals", "1/8,1/2", "--seeds", "1", "--lengths", "1"),
        rows=2,
        more=("--lengths", "0,1"),
        all_rows=3,  # at 1/8, where gamma starts, there is one length
        other=("--start", "1/64"),
        simplified=_without_memory,
    ),
    "init-text": Study(
        options=("--text", "foxes.txt", *DECODER, "--init-steps", "1", "--search-steps", "2", "--seeds", "2"),
        training=TextTraining,
        few=("curves", *UNSEARCHED, "--methods", "gradinit,tfixup", "--networks", "post-norm,norm-free"),
        rows=4,
        more=("--seeds", "3"),
        all_rows=6,
        other=("--width", "32"),
    ),
    "lottery": Study(
        options=(*TINY, "--rounds", "2"),
        training=Lottery,
        few=("--models", "lenet300", "--methods", "xavier,kaiming", "--seeds", "1", "--rounds", "1"),
        rows=2,
        more=("--warmup-epochs", "0,1"),
        all_rows=4,
        other=("--fraction", "0.5"),
    ),
}


def run(command: Callable[..., Any], study: str, *arguments: str) -> Any:
    """The study as small as in `STUDIES`, its results in ``out`` and on the standard output."""
    Path("foxes.txt").write_text(TEXT)
    options = STUDIES[study].options
    return command("bench", study, *options, "--device", "cpu", "--output", "out", "--json", *arguments)


def rows(finished: Any) -> list[dict[str, Any]]:
    """The rows of a command that succeeded, without what is never twice the same."""
    assert finished.status == 0, finished.err
    found: list[dict[str, Any]] = _without_times(json.loads(finished.out)["rows"])
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(part) for part in value]
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key not in TIMES}
    return value
