"""The path of a newcomer, each command in a process of its own, in an empty folder.

The tests go it with the sources and a small network. ``.ci/run`` goes it once more with what the README's first command
has installed and trained: MOMENTUMNET_PROGRAM names that program, MOMENTUMNET_FIRST_RUN the folder of its run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import transforms
from torchvision.models import get_model

from momentumnet.finetuning.images import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).resolve().parents[2]
INSTALLED, FIRST_RUN = os.environ.get("MOMENTUMNET_PROGRAM"), os.environ.get("MOMENTUMNET_FIRST_RUN")
PROGRAM = [INSTALLED] if INSTALLED else [sys.executable, "-m", "momentumnet"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
if not INSTALLED:
    ENVIRONMENT["PYTHONPATH"] = str(ROOT)
SMALL = ("--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "32")


def said(*arguments: str | Path) -> str:
    """What a command says on stdout; it has to end well."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def first_run() -> Path:
    """The run of a first command: of a bare ``finetune`` that is done already, or of a smaller one."""
    if FIRST_RUN:
        return Path(shutil.copytree(FIRST_RUN, Path("runs", "resnet18-digits")))
    said("finetune", *SMALL, "--epochs", "1", "--batch-size", "256")
    return Path("runs", "mobilenet_v3_small-digits")


def test_what_the_first_command_has_trained_is_evaluated_and_predicts(first_run: Path) -> None:
    values = json.loads(said("evaluate", first_run, "--json"))
    assert values["images"] == 360
    digits = load_digits()
    files = [Path(f"digit-{index}.png") for index in range(3)]
    for file, pixels in zip(files, digits.images, strict=False):
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(file)
    predicted = [json.loads(line) for line in said("predict", first_run, *files, "--json").splitlines()]
    assert [line["file"] for line in predicted] == [str(file) for file in files]
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-4 for line in predicted)
    if FIRST_RUN:
        assert values["accuracy"] > 0.8
        assert sum(line["class"] == str(label) for line, label in zip(predicted, digits.target, strict=False)) >= 2


def test_run_on_a_folder_is_killed_and_resumed(photos: Path) -> None:
    options = ("--data", photos.name, *SMALL, "--batch-size", "4", "--precision", "bf16", "--accumulate", "2")
    finetune = ("finetune", *options, "--gamma", "1/8", "--budget", "200MiB", "--epochs", "6")
    run = Path("runs", "mobilenet_v3_small-photos")
    kill_after_first_epoch(run, *finetune)
    assert "resuming after epoch " in said(*finetune, "--resume")
    assert "nearly the same only" in said("export", run)


def test_export_at_gamma_0_is_the_stock_network(photos: Path) -> None:
    run = Path("run")
    options = ("--data", photos.name, *SMALL, "--batch-size", "8", "--workers", "0", "--gamma", "0", "--epochs", "1")
    said("finetune", *options, "--output", run)
    files = sorted(photos.glob("val/*/*.png"))[2:5]
    predicted = [json.loads(line) for line in said("predict", run, *files, "--json").splitlines()]
    said("export", run, "--output", "stock.pt")
    stock = get_model("mobilenet_v3_small", num_classes=2).eval()
    stock.load_state_dict(torch.load("stock.pt", weights_only=True))
    prepare = transforms.Compose(
        [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    for line, file in zip(predicted, files, strict=True):
        with torch.no_grad():
            expected = stock(prepare(Image.open(file).convert("RGB"))[None]).softmax(dim=1)[0]
        found = torch.tensor([line["probabilities"][name] for name in ("bright", "dark")])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def kill_after_first_epoch(run: Path, *arguments: str) -> None:
    with subprocess.Popen([*PROGRAM, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        while not (run / "checkpoint-momentum.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
