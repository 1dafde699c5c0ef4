"""``momentumnet bench quality``: its tables and figures, weights that are kept, and texts of one's own."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from momentumnet.bench.quality.training import Training
from momentumnet.bench.quality.variants import VARIANTS
from tests.cli.bench.studies import rows, run

MODELS = ("--models", "vit2x16,vit6x16")


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "quality")


def test_table_and_figure_have_mean_and_deviation_by_depth_and_variant(
    bench: Callable[..., Any], drawn: list[pyplot.Figure]
) -> None:
    found = rows(bench(*MODELS, "--methods", "original,scratch", "--seeds", "2"))
    keys = [(row["model"], row["method"], row["seed"]) for row in found]
    assert keys == [(m, v, s) for m in ("vit2x16", "vit6x16") for v in ("original", "scratch") for s in (0, 1)]
    file = Path("out", "quality-digits.md").read_text()
    accuracy, memory = drawn[0].axes
    assert [axes.get_title() for axes in drawn[0].axes] == ["vitNx16: test accuracy", "vitNx16: memory"]
    assert memory.get_ylim()[0] == 0 < accuracy.get_ylim()[0]
    assert (memory.get_xlabel(), memory.get_ylabel()) == ("blocks", "peak memory of a training step, MiB")
    for place, (variant, gamma) in enumerate((("original", "none"), ("scratch", "9/10"))):
        own = [row for row in found if row["method"] == variant]
        scores = {depth: [row["score_last"] for row in own if row["depth"] == depth] for depth in (2, 6)}
        peaks = [max(row["peak_bytes_last"] for row in own if row["depth"] == depth) / 2**20 for depth in (2, 6)]
        for depth, peak in zip((2, 6), peaks, strict=True):
            figures = f"{statistics.mean(scores[depth]):.2f} ± {statistics.stdev(scores[depth]):.2f} | {peak:.2f}"
            assert f"| vit{depth}x16 | {variant} | {gamma} |  | {figures} | " in file
        means = [statistics.mean(scores[depth]) for depth in (2, 6)]
        assert accuracy.containers[place].lines[0].get_ydata() == pytest.approx(means)
        assert memory.containers[place].lines[0].get_ydata() == pytest.approx(peaks)
        assert f"{variant} {peaks[1] / peaks[0]:.2f}" in file
    for said in ("learning rate 0.003", "64 training and 50 test images of 8 x 8", "scheduled from gamma 1/8 to 9/10"):
        assert said in file


def test_weights_of_the_original_are_kept_for_later_commands(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, runs = Training._run, []

    def counted(self: Training, model: Any, advance: Any) -> Any:
        runs.append((self.seed, self.variant))
        return real(self, model, advance)

    monkeypatch.setattr(Training, "_run", counted)
    few = ("--models", "vit2x16", "--seeds", "2", "--methods")
    found = rows(bench(*few, "original,continued"))
    originals, continued = found[:2], found[2:]
    assert [row["seed"] for row in found] == [0, 1, 0, 1]
    assert [row["score_first"] for row in continued] == [row["score_last"] for row in originals]
    assert originals[0]["losses"] != originals[1]["losses"]
    assert runs == [(seed, VARIANTS[name]) for name in ("original", "continued") for seed in (0, 1)]
    rows(bench(*few, "converted"))
    assert runs[4:] == [(seed, VARIANTS["converted"]) for seed in (0, 1)]  # the original is not trained again
    rows(bench(*few, "continued", "--seeds", "1", "--restart"))
    assert runs[6:] == [(0, VARIANTS["original"]), (0, VARIANTS["continued"])]


def test_text_of_one_s_own_has_losses(bench: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "sea.txt"
    path.write_text("the sea, the sea, the open sea. " * 200)
    text = ("--task", "text", "--text", str(path), "--length", "16", "--models", "gpt2x16", "--seeds", "1")
    done = bench(*text, "--adam-lr", "0.01", "--epochs", "4", "--finetune-scale", "0.4")
    found, settings = rows(done), json.loads(done.out)["settings"]
    assert [row["method"] for row in found] == list(VARIANTS)
    assert [len(row["scores"]) for row in found] == [4, 4, 2, 2, 2]
    assert (settings["finetune_epochs"], settings["finetune_scale"]) == (2, 0.4)
    for row in found:
        assert row["score_last"] == row["scores"][-1] < 1 < math.log(len(set(path.read_text())))
    file = Path("out", "quality-sea.md").read_text()
    assert "first validation loss, nats a character" in file
    assert f"sea, 6400 characters ({len(set(path.read_text()))} different ones)" in file
    other = tmp_path / "other" / "sea.txt"
    other.parent.mkdir()
    other.write_text("the sky, the sky, the open sky. " * 200)
    refused = bench(*text, "--text", str(other), "--adam-lr", "0.01", "--epochs", "4")
    assert (refused.status, "was measured with other settings" in refused.err) == (2, True)


@pytest.mark.parametrize("task", ["images", "text"])
def test_quick_is_quick(command: Callable[..., Any], task: str) -> None:
    done = command("bench", "quality", "--quick", "--task", task, "--methods", "original,scheduled", "--json")
    found = rows(done)
    assert {(row["seed"], row["epochs"]) for row in found} == {(0, 1)}
    assert len(found) == 4
    settings = json.loads(done.out)["settings"]
    assert settings["gammas"] == ["1/8", "9/10"]
    assert settings.get("train_samples", 256) == 256
    assert settings.get("characters", 10_000) == 10_000
