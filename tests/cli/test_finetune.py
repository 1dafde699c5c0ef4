"""momentumnet finetune: what a run trains, keeps, shows and refuses."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from momentumnet.bench.measuring.probe import StepCost, step_costs
from momentumnet.cli.main import program
from momentumnet.files import whole_file
from momentumnet.finetuning import comparison
from momentumnet.finetuning.training import Trainer
from momentumnet.finetuning.weights_file import load_weights
from tests.cli.finetuned import learned, weights


def test_json_holds_both_networks(finetune: Callable[..., Any]) -> None:
    done = finetune("--epochs", "2", "--gamma", "0.5", "--output", "out", "--json")
    assert done.status == 0
    values = json.loads(done.out)
    momentum, unconverted = values["networks"]["momentum"], values["networks"]["unconverted"]
    assert values["settings"]["gamma"] == "1/2"
    assert [epoch["number"] for epoch in momentum["epochs"]] == [1, 2]
    assert 0 <= momentum["accuracy_after"] == momentum["epochs"][-1]["accuracy"] <= 1
    assert 0 < momentum["saved_bytes"] < unconverted["saved_bytes"]
    assert (unconverted["accuracy_after"], unconverted["epochs"]) == (None, [])
    assert unconverted["step_seconds"] > 0
    assert whole_file.read_json(Path("out", "report.json")) == values


def test_fine_tuned_weights_fit_the_stock_model(finetune: Callable[..., Any]) -> None:
    assert finetune("--epochs", "1", "--output", "out").status == 0
    get_model("mobilenet_v3_small", num_classes=2).load_state_dict(weights("out"))


def test_compare_trains_both_from_the_same_weights(finetune: Callable[..., Any]) -> None:
    # At gamma 0 the converted network is the original one.
    done = finetune("--epochs", "1", "--compare", "--gamma", "0", "--output", "out", "--json")
    networks = json.loads(done.out)["networks"]
    assert learned(networks["momentum"]) == learned(networks["unconverted"]) != []
    unconverted = load_weights(Path("out", "unconverted.safetensors"))
    assert all(torch.equal(value, unconverted[key]) for key, value in weights("out").items())


def test_stored_backward_reaches_the_same_weights(finetune: Callable[..., Any]) -> None:
    for backward in ("reversible", "stored"):
        assert finetune("--epochs", "1", "--backward", backward, "--output", backward).status == 0
    stored = weights("stored")
    for key, value in weights("reversible").items():
        torch.testing.assert_close(value, stored[key], rtol=1e-4, atol=1e-5)


def test_table_names_accuracy_memory_and_time(finetune: Callable[..., Any]) -> None:
    out = finetune("--epochs", "1").out
    for word in ("momentum, epoch 1/1: loss", "accuracy", "gamma 1/8", "unconverted", "MiB", " ms"):
        assert word in out
    assert Path("runs", "mobilenet_v3_small-photos", "report.json").is_file()


def test_weights_and_data_that_are_named_and_cannot_be_had_end_it_with_2(command: Callable[..., Any]) -> None:
    options = ("finetune", "--model", "mobilenet_v3_small", "--image-size", "32")
    data = command(*options, "--data", "cifar10")
    assert (data.status, data.out) == (2, "")
    assert "--data cifar10 could not be downloaded (no network)" in data.err
    assert "or take --data digits" in data.err
    weights = command(*options, "--weights", "DEFAULT")
    assert (weights.status, weights.out) == (2, "")
    assert "--weights DEFAULT of mobilenet_v3_small could not be downloaded (no network)" in weights.err
    assert "--weights none" in weights.err


def test_without_network_and_without_naming_any_weights_are_random_and_a_line_says_so(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("momentumnet.cli.finetune.Comparison.run", lambda *_, **__: {})
    done = command("finetune", "--model", "mobilenet_v3_small", "--image-size", "32")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("weights: those of mobilenet_v3_small could not be downloaded (no network)")
    assert lines[1].startswith("mobilenet_v3_small (weights: none) on digits: 1437 training")


def test_a_training_that_diverged_says_so(finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its accuracy was the share of the first class, which ``--save best`` may take for the best one."""

    def diverged(self: Trainer, epoch: int, advance: Callable[[], object]) -> float:
        torch.nn.init.constant_(self.model.get_parameter("classifier.3.bias"), torch.nan)
        self._right, self._seen = 0, 1
        return float("nan")

    monkeypatch.setattr(Trainer, "_train", diverged)
    done = finetune("--epochs", "2", "--output", "out", "--json")
    assert done.status == 0
    assert done.err.count("the loss is not finite, so the training has diverged") == 1
    for text in (done.out, Path("out/report.json").read_text()):
        epochs = json.loads(text, parse_constant=pytest.fail)["networks"]["momentum"]["epochs"]
        assert [(epoch["loss"], epoch["validation_loss"], epoch["accuracy"]) for epoch in epochs] == [
            (None, None, 0)
        ] * 2


@pytest.mark.parametrize("save", ["last", "best", "both"])
def test_accuracy_after_is_that_of_the_weights_that_are_kept(
    save: str, finetune: Callable[..., Any], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the last epoch's, beside weights of the best one."""
    biases = {1: [9.0, 0.0], 2: [0.0, 0.0], 3: [torch.nan, 0.0]}

    def train(self: Trainer, epoch: int, advance: Callable[[], object]) -> float:
        self.model.get_parameter("classifier.3.bias").data.copy_(torch.tensor(biases[epoch]))
        self._right, self._seen = 0, 1
        return 0.0

    monkeypatch.setattr(Trainer, "_train", train)
    done = finetune("--epochs", "3", "--save", save, "--output", "out")
    network = json.loads(Path("out/report.json").read_text())["networks"]["momentum"]
    accuracies = [epoch["accuracy"] for epoch in network["epochs"]]
    assert accuracies[2] == 0 < max(accuracies)
    kept = 2 if save == "last" else accuracies.index(max(accuracies))
    assert (network["accuracy_after"], network["epoch_kept"]) == (accuracies[kept], kept + 1)
    assert (f"of the best epoch, epoch {kept + 1} (momentum)" in done.out) == (save != "last")
    if save != "last":
        evaluated = json.loads(command("evaluate", "out", "--json").out)
        assert evaluated["accuracy"] == pytest.approx(network["accuracy_after"])


def test_images_that_were_trained_on_are_not_validated_on(
    finetune: Callable[..., Any], command: Callable[..., Any]
) -> None:
    """A file more, and another part of the folder was held out: `evaluate` and ``--resume`` went on in silence."""
    asked = ("--data", "photos/train", "--validation", "0.25", "--output", "out", "--epochs")
    assert finetune(*asked, "1").status == 0
    assert command("evaluate", "out").status == 0
    shutil.copy("photos/train/dark/0.png", "photos/train/dark/00.png")
    evaluated, resumed = command("evaluate", "out"), finetune(*asked, "2", "--resume")
    assert (evaluated.status, resumed.status) == (2, 2)
    assert "some of its training images would be evaluated" in evaluated.err
    assert "held_out 4 files, " in resumed.err
    assert command("evaluate", "out", "--data", "photos").status == 0
    Path("photos/train/dark/00.png").unlink()
    assert command("evaluate", "out").status == 0
    assert finetune(*asked, "2", "--resume").status == 0


def test_metrics_have_a_row_an_epoch(finetune: Callable[..., Any]) -> None:
    assert finetune("--epochs", "2", "--output", "out").status == 0
    with Path("out", "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    report = whole_file.read_json(Path("out", "report.json"))["networks"]["momentum"]
    assert [int(row["number"]) for row in rows] == [1, 2]
    assert [float(row["loss"]) for row in rows] == [epoch["loss"] for epoch in report["epochs"]]
    assert {int(row["peak_bytes"]) for row in rows} == {report["peak_bytes"]}
    assert all(0 <= float(row["train_accuracy"]) <= 1 and float(row["seconds"]) > 0 for row in rows)


def test_model_without_streams_is_refused(finetune: Callable[..., Any]) -> None:
    done = finetune("--model", "densenet121")
    assert done.status == 1
    assert "no residual stream found in DenseNet" in done.err


def test_one_image_is_too_few(finetune: Callable[..., Any]) -> None:
    done = finetune("--batch-size", "1")
    assert done.status == 2
    assert "batches of at least 2 images" in done.err


def test_every_option_is_recorded(finetune: Callable[..., Any]) -> None:
    assert finetune("--epochs", "1", "--output", "out", "--quiet", "--rho", "0.1", "--optimizer", "sam").status == 0
    recorded = whole_file.read_json(Path("out", "config.json"))["options"]
    (commands,) = (action for action in program()._actions if isinstance(action, argparse._SubParsersAction))
    known = {action.dest for action in commands.choices["finetune"]._actions} - {"help"}
    assert known == recorded.keys()
    chosen = {"epochs": 1, "quiet": True, "rho": 0.1, "gamma": None, "compile": False, "output": "out"}
    assert recorded == recorded | chosen


def test_quiet_is_the_result_alone(finetune: Callable[..., Any]) -> None:
    out = finetune("--epochs", "1", "--quiet").out
    assert out.splitlines()[0].startswith("mobilenet_v3_small on ")
    assert "unconverted" in out
    assert "epoch" not in out


def test_epochs_say_how_fast_and_how_long(finetune: Callable[..., Any]) -> None:
    lines = [line for line in finetune("--epochs", "2").out.splitlines() if line.startswith("momentum, epoch")]
    assert re.search(r"accuracy [\d.]+%, \d+ s, \d+ images/s, \d+ s left$", lines[0])
    assert re.search(r"accuracy [\d.]+%, \d+ s, \d+ images/s$", lines[1])


def test_compile_is_for_the_blocks_of_both_networks(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[list[str]] = []
    monkeypatch.setattr(
        "momentumnet.bench.measuring.compiled.compile_each",
        lambda blocks: compiled.append([type(block).__name__ for block in blocks]),
    )
    assert finetune("--epochs", "1", "--compile").status == 0
    assert compiled[0] == compiled[1]
    assert set(compiled[0]) >= {"InvertedResidual"}


def test_tensorboard_is_told_if_it_is_not_installed(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    done = finetune("--tensorboard")
    assert (done.status, done.out) == (3, "")
    assert 'pip install "momentumnet[tensorboard]"' in done.err


def test_tensorboard_shows_each_epoch(finetune: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard")
    assert finetune("--epochs", "2", "--output", "out", "--tensorboard").status == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator("out/tensorboard/momentum")
    found.Reload()
    epochs = whole_file.read_json(Path("out", "report.json"))["networks"]["momentum"]["epochs"]
    assert [event.value for event in found.Scalars("loss")] == pytest.approx([epoch["loss"] for epoch in epochs])
    assert finetune("--epochs", "1", "--output", "out", "--overwrite").status == 0
    assert list(Path("out", "tensorboard", "momentum").iterdir()) == []


def test_memory_and_time_are_those_of_the_step_that_is_trained(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its precision, and with norms that are frozen in eval mode: of bf16 the bytes of float32 were told."""
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, *_: object) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), module.training))

    def watched(networks: Mapping[str, nn.Module], *args: Any, **options: Any) -> dict[str, StepCost]:
        norms = [net.get_submodule("features.0.1") for net in networks.values()]
        hooks = [norm.register_forward_hook(look) for norm in norms]
        costs = step_costs(networks, *args, **options, repeats=1)
        for hook in hooks:
            hook.remove()
        return costs

    monkeypatch.setattr(comparison, "step_costs", watched)
    assert finetune("--epochs", "1", "--freeze", "1", "--precision", "bf16").status == 0
    assert set(seen) == {(True, False)}
    seen.clear()
    assert finetune("--epochs", "1", "--freeze", "1").status == 0
    assert set(seen) == {(False, False)}
