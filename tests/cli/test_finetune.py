from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model

from momentumnet import checkpoint_file, whole_file
from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.bench.probe import step_costs
from momentumnet.cli.main import program
from momentumnet.conversion import convert
from momentumnet.finetuning import comparison, data, models
from momentumnet.finetuning.training import Trainer
from momentumnet.finetuning.weights_file import load_weights

SMALL = ("--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "32", "--batch-size", "4")


@pytest.fixture
def finetune(command: Callable[..., Any], photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(data, "FILE_WORKERS", 0)
    monkeypatch.setattr(comparison, "step_costs", partial(step_costs, repeats=1))
    return lambda *arguments: command("finetune", "--data", str(photos), *SMALL, *arguments)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_weights(Path(folder, "model.safetensors"))


def learned(network: dict[str, Any]) -> list[dict[str, float]]:
    """What a network's epochs came to, but for their time."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in network["epochs"]]


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    train = Trainer._train

    def interrupted(self: Trainer, epoch: int, advance: Callable[[], object]) -> float:
        loss = train(self, epoch, advance)
        if epoch == number:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(Trainer, "_train", interrupted)


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


def test_resumed_run_ends_where_an_uninterrupted_one_does(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finetune("--epochs", "3", "--output", "whole").status == 0
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        interrupted = finetune("--epochs", "3", "--output", "out")
    assert interrupted.status == 130
    assert "--resume goes on after the last finished epoch" in interrupted.out
    resumed = finetune("--epochs", "3", "--output", "out", "--resume")
    assert "resuming after epoch 1 of 3" in resumed.out
    assert "epoch 1/3" not in resumed.out
    expected = weights("whole")
    assert all(torch.equal(value, expected[key]) for key, value in weights("out").items())
    epochs = [json.loads(Path(out, "report.json").read_text())["networks"]["momentum"] for out in ("whole", "out")]
    assert learned(epochs[0]) == learned(epochs[1])


@pytest.mark.parametrize("options", [(), ("--adaptive", "--rho", "2")])
def test_sam_resumes_and_trains_otherwise_than_adamw(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    sam = ("--epochs", "2", "--optimizer", "sam", *options)
    done = finetune(*sam, "--output", "whole", "--json")
    settings = json.loads(done.out)["settings"]
    rho, adaptive = (2.0, True) if options else (0.05, False)
    assert (settings["optimizer"], settings["rho"], settings["adaptive"]) == ("sam", rho, adaptive)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        assert finetune(*sam, "--output", "out").status == 130
    assert "resuming after epoch 1 of 2" in finetune(*sam, "--output", "out", "--resume").out
    expected = weights("whole")
    assert all(torch.equal(value, expected[key]) for key, value in weights("out").items())
    assert finetune("--epochs", "2", "--output", "adamw").status == 0
    assert not torch.equal(weights("adamw")["classifier.3.weight"], expected["classifier.3.weight"])


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_papers_formula_around_adamw(finetune: Callable[..., Any], photos: Path, adaptive: bool) -> None:
    """One step on all images, written out: two gradients, the dropout of the first, statistics counted once."""
    options = ("--epochs", "1", "--batch-size", "16", "--gamma", "0", "--image-size", "32", "--lr", "0.01")
    sam = ("--optimizer", "sam", "--rho", "0.5", *(["--adaptive"] if adaptive else []))
    assert finetune(*options, *sam, "--output", "out").status == 0
    images = data.load_images(str(photos), image_size=32, say=print)
    torch.manual_seed(0)
    model, _ = models.build_classifier("mobilenet_v3_small", weights="none", classes=2, image_size=32, say=print)
    model.train()
    torch.manual_seed(0)
    ((x, y),) = images.batches(images.train, 16, shuffle_seed=1)
    random = torch.get_rng_state()
    F.cross_entropy(model(x), y).backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    kept = [p.detach().clone() for p in model.parameters()]
    scales = [w.abs() + 0.01 if adaptive else torch.ones_like(w) for w in kept]
    scaled = [t * p.grad for t, p in zip(scales, model.parameters(), strict=True)]
    norm = torch.cat([value.flatten() for value in scaled]).double().norm()
    with torch.no_grad():
        for p, t, value in zip(model.parameters(), scales, scaled, strict=True):
            p += 0.5 * t * value / norm
    model.zero_grad()
    torch.set_rng_state(random)
    F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=1)
    optimizer.step()
    expected = {name: p.detach() for name, p in model.named_parameters()} | buffers
    found = weights("out")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    # Adam's first step hides the size of the gradient, which its first moment shows.
    state = torch.load("out/checkpoint-momentum.pt", weights_only=True)["optimizer"]["state"]
    moments = torch.cat([state[index]["exp_avg"].flatten() for index in range(len(kept))])
    reference = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in model.parameters()])
    assert float((moments - reference).norm() / reference.norm()) < 1e-3


def test_sam_compares_with_the_unconverted_network(finetune: Callable[..., Any]) -> None:
    # At gamma 0 the converted network is the original one.
    done = finetune("--epochs", "1", "--compare", "--gamma", "0", "--optimizer", "sam", "--output", "out", "--json")
    networks = json.loads(done.out)["networks"]
    assert learned(networks["momentum"]) == learned(networks["unconverted"]) != []


def test_sam_on_recomputed_activations_is_that_on_stored_ones(finetune: Callable[..., Any]) -> None:
    for backward in ("reversible", "stored"):
        options = ("--epochs", "1", "--optimizer", "sam", "--backward", backward)
        assert finetune(*options, "--output", backward).status == 0
    stored = weights("stored")
    assert all(torch.equal(value, stored[key]) for key, value in weights("reversible").items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rho", "0.1"), "--rho is an option of sam, and the optimizer is adamw: add --optimizer sam"),
        (("--adaptive",), "--adaptive is an option of sam, and the optimizer is adamw: add --optimizer sam"),
    ],
)
def test_options_of_sam_without_sam_are_refused(
    finetune: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    done = finetune(*options)
    assert (done.status, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "optimizer adamw there, sam now"),
        (("--optimizer", "sam", "--rho", "0.2"), "rho 0.2 there, 0.05 now"),
        (("--optimizer", "sam", "--adaptive", "--rho", "0.05"), "adaptive True there, False now"),
    ],
)
def test_checkpoint_of_another_optimizer_is_refused(
    finetune: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    assert finetune("--epochs", "1", *options, "--output", "out").status == 0
    done = finetune("--epochs", "1", "--optimizer", "sam", "--output", "out", "--resume")
    assert done.status == 2
    assert message in done.err


def test_resume_before_the_first_epoch_ended(finetune: Callable[..., Any]) -> None:
    done = finetune("--epochs", "1", "--output", "out", "--resume")
    assert done.status == 0
    assert "does not exist yet: starting with the first epoch" in done.out


def test_checkpoint_holds_what_the_streams_learned(finetune: Callable[..., Any]) -> None:
    assert finetune("--epochs", "1", "--output", "out").status == 0
    path = Path("out", "checkpoint-momentum.pt")
    content = torch.load(path, weights_only=True)
    names = list(content["streams"]["streams"])
    assert names
    description = whole_file.read_json(Path("out", "config.json"))["conversion"]
    assert [stream["blocks"][0] for stream in description["streams"]] == names
    assert {stream["gamma"] for stream in description["streams"]} == {"1/8"}
    del content["streams"]["streams"][names[0]]
    checkpoint_file.save(path, content["settings"], content)
    done = finetune("--epochs", "1", "--output", "out", "--resume")
    assert done.status == 2
    assert f"lacks ['{names[0]}']" in done.err
    assert "start without --resume" in done.err


def test_checkpoint_of_another_run_is_refused(finetune: Callable[..., Any]) -> None:
    """And nothing in the folder changes: by config.json evaluate and predict know which network the weights are of."""
    assert finetune("--epochs", "1", "--output", "out").status == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir() if path.name != ".lock"}
    options = ("--epochs", "1", "--output", "out", "--resume")
    for other, difference in {
        "lr": ("0.1", "lr 0.001 there, 0.1 now"),
        "gamma": ("0.9", "1/8 there, 9/10 now"),
    }.items():
        done = finetune(f"--{other}", difference[0], *options)
        assert done.status == 2
        assert difference[1] in done.err
        assert {path: path.read_bytes() for path in before} == before
    assert finetune(*options).status == 0


def test_damaged_checkpoint_is_never_taken(finetune: Callable[..., Any]) -> None:
    """A flipped byte: on from the one before it, to the same weights. Both damaged: refused."""
    assert finetune("--epochs", "2", "--output", "out").status == 0
    expected, path = weights("out"), Path("out", "checkpoint-momentum.pt")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)

    flip(path)
    done = finetune("--epochs", "2", "--output", "out", "--resume")
    assert done.status == 0
    assert f"{path} is damaged: its SHA-256 is not the one that it carries; going on from" in done.out
    assert "resuming after epoch 1 of 2" in done.out
    assert all(torch.equal(value, expected[key]) for key, value in weights("out").items())
    flip(path), flip(checkpoint_file.previous(path))
    config = Path("out", "config.json").read_bytes()
    done = finetune("--epochs", "2", "--gamma", "0.5", "--output", "out", "--resume")
    assert done.status == 2
    assert Path("out", "config.json").read_bytes() == config
    assert f"{path} is damaged" in done.err
    assert "Traceback" not in done.err


def test_second_run_goes_to_a_folder_of_its_own(finetune: Callable[..., Any]) -> None:
    first, second = Path("runs", "mobilenet_v3_small-photos"), Path("runs", "mobilenet_v3_small-photos-2")
    assert finetune("--epochs", "1").status == 0
    before = {path: path.read_bytes() for path in first.iterdir() if path.name != ".lock"}
    assert finetune("--epochs", "1", "--seed", "1").status == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (second / "report.json").is_file()
    done = finetune("--epochs", "1", "--output", str(first))
    assert done.status == 2
    assert "holds a run: go on with it by --resume, replace it by --overwrite" in done.err
    for mistyped in (("--weights", "none.safetensors"), ("--model", "resnet19"), ("--freeze", "9999")):
        assert finetune("--epochs", "1", "--output", str(first), "--overwrite", *mistyped).status == 2
        assert {path: path.read_bytes() for path in before} == before
    left = first / "evaluation.json"  # of the old run, and nothing that a training writes
    left.write_text("{}")
    assert finetune("--epochs", "1", "--seed", "1", "--output", str(first), "--overwrite").status == 0
    assert not left.exists()
    assert whole_file.read_json(first / "report.json")["settings"]["seed"] == 1


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


@pytest.mark.parametrize("change", ["renamed", "added"])
def test_a_run_is_not_resumed_with_other_classes(
    change: str, finetune: Callable[..., Any], command: Callable[..., Any]
) -> None:
    """With another name outputs were trained on as other classes; with one more it ended in an error of PyTorch."""
    assert finetune("--epochs", "1", "--output", "out").status == 0
    for part in (Path("photos/train"), Path("photos/val")):
        if change == "renamed":
            (part / "bright").rename(part / "light")
        else:
            shutil.copytree(part / "bright", part / "light")
    resumed = finetune("--epochs", "2", "--output", "out", "--resume")
    assert resumed.status == 2
    assert "has other classes than out was trained on: bright, dark there, " in resumed.err
    assert whole_file.read_json(Path("out/config.json"))["classes"] == ["bright", "dark"]


def test_a_run_that_did_not_write_down_what_was_held_out_goes_on(finetune: Callable[..., Any]) -> None:
    """Earlier versions did not: ``--resume`` refused their runs, for a setting that is none of the user's."""
    asked = ("--data", "photos/train", "--validation", "0.25", "--output", "out", "--epochs")
    assert finetune(*asked, "1").status == 0
    content = checkpoint_file.read(Path("out", "checkpoint-momentum.pt"))
    settings = {name: value for name, value in content.pop("settings").items() if name != "held_out"}
    checkpoint_file.save(Path("out", "checkpoint-momentum.pt"), settings, content)
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


def test_memory_to_spare_leads_to_the_same_weights(finetune: Callable[..., Any]) -> None:
    small = ("--batch-size", "2")
    least = json.loads(finetune("--epochs", "1", "--output", "least", *small, "--budget", "least", "--json").out)
    spared = json.loads(finetune("--epochs", "1", "--output", "spared", *small, "--spare", "64KiB", "--json").out)
    assert least["settings"]["spare"] == 0
    assert spared["settings"]["spare"] == 2**16
    peaks = [values["networks"]["momentum"]["peak_bytes"] for values in (least, spared)]
    assert peaks[1] <= 1.1 * peaks[0] + 2**16  # as predicted
    assert spared["networks"]["momentum"]["saved_bytes"] > least["networks"]["momentum"]["saved_bytes"]
    before, after = weights("least"), weights("spared")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("batches", "gradients"), [("1", "anew"), ("2", "present")])
def test_a_budget_counts_gradients_that_are_accumulated(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, batches: str, gradients: str
) -> None:
    told = []

    def told_of(*given: Any, **options: Any) -> Any:
        told.append(options["gradients"])
        return convert(*given, **options)

    monkeypatch.setattr("momentumnet.cli.finetune.convert", told_of)
    assert not finetune("--epochs", "1", "--budget", "least", "--accumulate", batches).status
    assert told == [gradients]


def test_a_budget_in_place_of_the_options_that_it_chooses(finetune: Callable[..., Any]) -> None:
    done = finetune("--epochs", "1", "--output", "planned", "--budget", "least", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    momentum, unconverted = values["networks"]["momentum"], values["networks"]["unconverted"]
    assert values["settings"]["budget"] == "least"
    assert momentum["saved_bytes"] < 0.8 * unconverted["saved_bytes"]
    assert "no choice fits a budget of 1.00 MiB" in finetune("--budget", "1MiB").err
    for option in (("--backward", "stored"), ("--others", "keep")):
        for bytes_ in ("--budget", "--spare"):
            refused = finetune(bytes_, "1GiB", *option)
            assert refused.status == 2
            assert "leave out --others and --backward" in refused.err
    assert "leave out one of the two" in finetune("--budget", "1GiB", "--spare", "1MiB").err


def test_host_memory_is_for_a_plan_on_a_gpu(finetune: Callable[..., Any]) -> None:
    for asked, said in (
        ((), "add for example --budget 4GiB"),
        (("--budget", "1GiB"), "device is cpu; leave it out"),
    ):
        refused = finetune("--offload", "--device", "cpu", *asked)
        assert refused.status == 2
        assert said in refused.err


def test_a_network_of_which_the_plan_recomputes_nothing_is_trained_as_it_is(finetune: Callable[..., Any]) -> None:
    options = ("--model", "squeezenet1_1", "--image-size", "64", "--budget", "64GiB", "--output", "out")
    done = finetune(*options, "--epochs", "1", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["settings"]["gamma"] == "0"
    momentum, unconverted = values["networks"]["momentum"], values["networks"]["unconverted"]
    assert momentum["saved_bytes"] == unconverted["saved_bytes"]
    assert "resuming after epoch 1 of 2" in finetune(*options, "--epochs", "2", "--resume").out


@pytest.mark.parametrize("gammas", [(0, 1 / 8), (1 / 8, 0)])
def test_a_resumed_run_keeps_the_function_that_its_plan_chose(
    gammas: tuple[float, float], finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans go by measured times, which are not the same twice."""
    asked = []
    for epochs, chosen in zip(("1", "2"), gammas, strict=True):

        def planned(*args: Any, gamma: Any = None, chosen: float = chosen, **options: Any) -> Any:
            asked.append(gamma)
            return convert(*args, gamma=chosen if gamma is None and "budget" in options else gamma, **options)

        monkeypatch.setattr("momentumnet.cli.finetune.convert", planned)
        again = () if epochs == "1" else ("--resume",)
        done = finetune("--epochs", epochs, "--output", "out", "--budget", "1GiB", "--json", *again)
        assert done.status == 0, done.err
        assert json.loads(done.out)["settings"]["gamma"] == str(exact_gamma(gammas[0]))
    assert asked == [None, exact_gamma(gammas[0])]


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
        "momentumnet.bench.compiled.compile_each",
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
