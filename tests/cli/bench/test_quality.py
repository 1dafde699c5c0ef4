"""``momentumnet bench quality``: its tables and figures, a run that goes on, and options that do not fit."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

from momentumnet.bench.quality.training import Training
from momentumnet.bench.quality.variants import VARIANTS
from tests.cli.bench.trainings import TINY, rows_without

rows = partial(rows_without, ("seconds", "epoch_seconds", "step_ratio"))
MODELS = ("--models", "vit2x16,vit6x16")


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "quality", *TINY, "--output", "out", "--json", *arguments)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[pyplot.Figure]]:
    """The figures that were drawn."""
    figures: list[pyplot.Figure] = []
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)


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


def test_a_run_goes_on_after_each_row_with_the_weights_of_before(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--models", "vit2x16", "--seeds", "1")
    whole = rows(bench(*arguments))
    assert [row["method"] for row in whole] == list(VARIANTS)
    real, runs = Training._run, []

    def interrupted(self: Training, model: Any, advance: Any) -> Any:
        runs.append(self.variant)
        if self.variant == VARIANTS["converted"]:
            raise KeyboardInterrupt
        return real(self, model, advance)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_run", interrupted)
        stopped = bench(*arguments, "--restart")
    assert stopped.status == 130
    assert runs == list(VARIANTS.values())[:4]

    def counted(self: Training, model: Any, advance: Any) -> Any:
        runs.append(self.variant)
        return real(self, model, advance)

    monkeypatch.setattr(Training, "_run", counted)
    resumed = bench(*arguments)
    assert "3 of 5 rows are done already" in resumed.err
    assert rows(resumed) == whole
    assert runs[4:] == [VARIANTS["converted"], VARIANTS["scheduled"]]  # the original is not trained again
    refused = bench(*arguments, "--adam-lr", "0.1")
    assert (refused.status, "was measured with other settings" in refused.err) == (2, True)


def test_text_of_one_s_own_has_losses(bench: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "sea.txt"
    path.write_text("the sea, the sea, the open sea. " * 200)
    text = ("--task", "text", "--text", str(path), "--length", "16", "--models", "gpt2x16", "--seeds", "1")
    found = rows(bench(*text, "--adam-lr", "0.01", "--epochs", "4"))
    assert [row["method"] for row in found] == list(VARIANTS)
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


def test_row_that_diverges_is_shown_and_the_others_go_on(bench: Callable[..., Any]) -> None:
    done = bench("--models", "vit2x16", "--methods", "original,continued", "--seeds", "1", "--adam-lr", "1e30")
    assert [row["error"].partition(" in ")[0] for row in rows(done)] == ["diverged: loss nan"] * 2
    table = Path("out", "quality-digits.md").read_text()
    assert "| vit2x16 | continued |  |  | fails | fails | fails |  |  | 0 of 1 |" in table
    assert "vit2x16, continued, seed 0: diverged: loss nan" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "vgg8"), "vgg8 has no residual blocks; take resnetN, resnetN_bn, vitN or vitNxWIDTH"),
        (("--models", "resnet21"), "there is no resnet of depth 21"),
        (("--models", "vit4x100"), "100 features make no whole heads; give a multiple of 64, or less than 64"),
        (("--methods", "scratch,best"), "'best' is not a method; there are original, scratch, continued, converted"),
        (("--models", "gpt2"), "--task images: 'gpt2' is not a network of this benchmark"),
        (("--task", "text", "--models", "vit2"), "--task text: 'vit2' is not a network for text; there are gptN"),
        (("--text", "book.txt"), "--text book.txt is read with --task text only"),
        (("--task", "text", "--data", "cifar10"), "--data cifar10 holds images; with --task text give --text FILE"),
        (("--task", "text", "--text", "none.txt"), "No such file or directory: 'none.txt'"),
        (("--task", "text", "--characters", "500"), "the last tenth holds no window of 64; give 640 or more"),
        (("--task", "text", "--characters", "2000"), "27 windows of 64 characters are less than one batch of 32"),
        (("--finetune-scale", "0"), "0 is not a positive number"),
    ],
)
def test_options_that_do_not_fit_are_answered_with_what_would(
    bench: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())


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
