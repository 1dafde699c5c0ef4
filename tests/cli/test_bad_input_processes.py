"""Each kind of bad input, as a command in a process of its own: one line, and its exit status."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from momentumnet.files import whole_file
from tests.cli.forked import Ended, commands

SMALL = (
    "--model",
    "mobilenet_v3_small",
    "--weights",
    "none",
    "--image-size",
    "32",
    "--epochs",
    "1",
    "--batch-size",
    "4",
)
FINETUNE = ("finetune", *SMALL, "--workers", "0")


def one_line(done: Ended, status: int) -> str:
    assert done.status == status, done
    lines = [line for line in done.err.splitlines() if "warning" not in line]
    assert len(lines) == 1, done.err
    return lines[0]


def folder_of(name: str, **classes: int) -> str:
    """A folder of a few images of each class."""
    for place in ("train", "val"):
        for label, count in classes.items():
            (Path(name) / place / label).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(name) / place / label / f"{index}.png")
    return name


def test_options_that_cannot_be() -> None:
    cases = {
        ("finetune", "--gamma", "1"): "argument --gamma: 1 is not in [0, 1)",
        ("finetune", "--gamma=-1/2"): "is not in [0, 1)",
        ("finetune", "--gamma", "nan"): "'nan' is not a number",
        ("finetune", "--device", "toaster"): "argument --device: 'toaster' is not a device that can be used here",
        ("finetune", "--device", "cuda:99"): "'cuda:99' is not a device that can be used here",
        ("finetune", "--seed", str(10**30)): "argument --seed: ",
        ("finetune", "--lr", "inf"): "argument --lr: inf is not a positive number",
        ("finetune", "--precision", "int8"): "argument --precision: invalid choice: 'int8'",
        ("finetune", "--budget", "2000"): "'2000' has no unit",
        ("finetune", "--config", "nowhere.toml"): "nowhere.toml cannot be read",
        ("finetune", "--data", "nowhere"): "'nowhere' is neither a folder nor one of digits, cifar10",
        ("finetune", "--data", "cifar100"): "--data cifar100 could not be downloaded (no network)",
        ("finetune", "--colour", "red"): "momentumnet finetune: error: --colour red: no such option; see momentumnet f",
        ("finetune", "resnet18", "--modle", "x"): "--modle x: no such option (did you mean --model?)",
        ("finetune", "--model", "resnet18", "resnet34"): "resnet34: there is a --model already; give one model",
        ("finetune", "resnet18", "resnet34"): "resnet18 resnet34: no such argument",
        ("bench", "step", "resnet18", "--network", "resnet50-64"): "both name what is measured",
        ("bench", "step", "--quik"): "--quik: no such option (did you mean --quick or --quiet?); see momentumnet bench",
        ("doctor", "all"): "all: no such argument",
        ("predict", "nowhere", "a.png"): "nowhere is not the folder of a run",
        ("evaluate", "."): ". is not the folder of a run",
    }
    for (arguments, message), done in zip(cases.items(), commands(*cases), strict=True):
        assert message in one_line(done, 2), arguments


def test_folders_that_hold_no_images_for_training() -> None:
    Path("empty").mkdir()
    Path("no-classes", "train").mkdir(parents=True)
    Path("no-classes", "val").mkdir()
    folder_of("without-val", a=1, b=1)
    shutil.rmtree("without-val/val")
    folder_of("an-empty-class", a=1, b=0)
    cases = {
        "empty": "empty has no folder train",
        "no-classes": "no-classes/train cannot be used",
        "without-val": "without-val has no folder val",
        "an-empty-class": "an-empty-class/train cannot be used",
    }
    ended = commands(*((*FINETUNE, "--data", folder) for folder in cases))
    for message, done in zip(cases.values(), ended, strict=True):
        assert message in one_line(done, 2)
        assert done.out == ""


def test_folders_that_teach_nothing_are_trained_on_with_a_warning() -> None:
    lone, single = folder_of("lone", only=4), folder_of("single", a=4, b=1)
    first, second = commands((*FINETUNE, "--data", lone), (*FINETUNE, "--data", single, "--quiet"))
    assert (first.status, second.status) == (0, 0), (first, second)
    assert "warning: lone/train holds one class only, only: accuracy is 100 % whatever is learned" in first.out
    assert "warning: single/train holds a single image of b: accuracy means little there" in second.out


def test_images_of_all_kinds_are_trained_on_and_predicted() -> None:
    folder = Path(folder_of("kinds", a=3, b=3))
    grey = np.linspace(0, 255, 32 * 32).round().astype(np.uint8).reshape(32, 32)
    plain = Image.fromarray(grey)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "train" / "a" / "16-bit.png")
    plain.convert("CMYK").save(folder / "train" / "a" / "cmyk.jpg")
    plain.convert("RGB").quantize(16).save(folder / "train" / "b" / "palette.png")
    plain.convert("RGB").quantize(16).save(folder / "train" / "b" / "palette.gif")
    plain.save(folder / "train" / "a" / "grey.png")
    same = [*sorted(map(str, (folder / "train" / "a").glob("*16-bit.png"))), str(folder / "train" / "a" / "grey.png")]
    trained, predicted = commands((*FINETUNE, "--data", "kinds", "--output", "run"), ("predict", "run", *same))
    assert trained.status == 0, trained.err
    of_16_bits, of_8 = (line.partition(": ")[2] for line in predicted.out.splitlines())
    assert of_16_bits == of_8  # the same picture, scaled and not clipped


def test_images_that_cannot_be_read() -> None:
    good = folder_of("good", a=4, b=4)
    (trained,) = commands((*FINETUNE, "--data", good, "--output", "run"))
    assert trained.status == 0, trained.err
    content = Path(good, "train", "a", "0.png").read_bytes()
    Path("cut.png").write_bytes(content[: len(content) // 2])
    Path("empty.png").touch()
    Path("text.png").write_text("not an image")
    Image.new("1", (20_000, 20_000)).save("huge.png")
    said = {
        "cut.png": "cut.png: ",
        "empty.png": "empty.png: an empty file",
        "text.png": "text.png: cannot identify image file",
        "huge.png": "huge.png: more than 89478485 pixels",
        "nowhere.png": "nowhere.png: ",
    }
    files = [*said, str(Path(good, "train", "a", "0.png"))]
    *ended, skipped = commands(
        *(("predict", "run", name) for name in said), ("predict", "run", *files, "--skip-broken")
    )
    for message, done in zip(said.values(), ended, strict=True):
        assert message in one_line(done, 2)
    assert skipped.status == 0
    assert skipped.out.count("\n") == 1
    assert "5 of 6 files cannot be read and were skipped" in skipped.err


def test_sizes_that_no_machine_has() -> None:
    folder_of("photos", a=4, b=4)
    huge = ("finetune", "--model", "mobilenet_v3_small", "--weights", "none", "--epochs", "1", "--batch-size", "4")
    cases = (
        ("inspect", "resnet18", "--input", "1,3,3000000,3000000"),
        (*huge, "--image-size", "3000000"),
        (*huge, "--image-size", "3000000", "--data", "photos", "--workers", "0"),
    )
    for done in commands(*cases):
        assert "out of memory" in one_line(done, 3)


def test_files_of_weights_and_results_that_are_none() -> None:
    torch.save(resnet18().state_dict(), "resnet18.pt")
    for name in ("text.pt", "text.npz"):
        Path(name).write_text("weights\n")
    Path("runs", "bench").mkdir(parents=True)
    Path("runs", "bench", "depth-mlp.json").write_text('{"rows": [')
    Path("runs", "bench", "zoo.json").write_text("half a li")
    weights = ("finetune", "--model", "mobilenet_v3_small", "--image-size", "32", "--weights")
    cases = {
        (*weights, "resnet18.pt"): "They fit --model resnet18",
        (*weights, "text.pt"): "text.pt is not a file of weights",
        (*weights, "nowhere.pt"): "--weights nowhere.pt is neither a file nor weights of mobilenet_v3_small",
        ("bench", "depth", "--family", "mlp", "--quick", "--resume"): "depth-mlp.json is damaged",
        ("bench", "zoo", "--quick", "--resume"): "zoo.json is damaged",
        ("bench", "init", "--data", "text.npz", "--quick"): "text.npz is no NumPy archive",
        ("bench", "sam", "--data", "cifar10", "--quick"): "CIFAR-10 could not be downloaded",
    }
    for (arguments, message), done in zip(cases.items(), commands(*cases), strict=True):
        assert message in one_line(done, 2), arguments


@pytest.mark.parametrize("model", ["inception_v3", "vit_b_32"])
def test_sizes_that_a_network_is_not_made_for(model: str) -> None:
    folder_of("photos", a=4, b=4)
    options = ("--weights", "none", "--image-size", "20", "--data", "photos", "--workers", "0", "--batch-size", "4")
    (done,) = commands(("finetune", "--model", model, *options))
    assert f"{model} " in one_line(done, 2)
    assert "20 x 20" in done.err


def test_a_run_that_is_there_is_kept() -> None:
    Path("run").mkdir()
    whole_file.write_json(Path("run", "config.json"), {})
    (done,) = commands((*FINETUNE, "--output", "run"))
    assert "run holds a run: go on with it by --resume" in one_line(done, 2)
    assert whole_file.read_json(Path("run", "config.json")) == {}
