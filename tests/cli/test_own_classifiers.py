"""Classifiers that are not torchvision's, fine-tuned and used from their folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from momentumnet.bench.measuring.probe import step_costs
from momentumnet.finetuning import comparison

MINE = """\
from types import SimpleNamespace

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())

    def forward(self, x):
        return x + self.inner(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.blocks = nn.Sequential(*[Block() for _ in range(3)])
        self.head = nn.Linear(4, 7)

    def forward(self, images):
        return {"logits": self.head(self.blocks(self.stem(images)).mean((2, 3)))}


def network():
    torch.manual_seed(0)
    return Network()


class Dense(Network):
    def forward(self, images):
        return self.stem(images)


def dense():
    return Dense()
"""
OPTIONS = ("--image-size", "16", "--batch-size", "4", "--epochs", "1", "--augment", "none", "--device", "cpu")


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(comparison, "step_costs", partial(step_costs, repeats=1))


def vit(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8)
    torch.manual_seed(5)  # another one than that of the run
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["mine:network", "hf:vit", "timm:test_vit"])
def test_a_run_is_made_and_used(command: Callable[..., Any], photos: Path, tmp_path: Path, name: str) -> None:
    if name == "hf:vit":
        vit(tmp_path / "vit")
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="pip install 'momentumnet[timm]'")
    done = command("finetune", "--model", name, "--data", str(photos), *OPTIONS, "--workers", "0")
    assert done.status == 0, done.err
    (folder,) = Path("runs").iterdir()
    assert folder.name == f"{name.replace(':', '-')}-photos"
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["classes"]) == (name, ["bright", "dark"])
    assert config["settings"]["weights"] == ("none" if name.startswith("timm") else "own")

    assert command("evaluate", str(folder)).status == 0
    report = json.loads((folder / "report.json").read_text())
    evaluated = json.loads((folder / "evaluation.json").read_text())
    assert evaluated["accuracy"] == pytest.approx(report["networks"]["momentum"]["accuracy_after"])
    assert command("predict", str(folder), str(photos / "val" / "dark" / "0.png")).status == 0
    exported = command("export", str(folder), "--output", "stock.pt")
    assert exported.status == 0, exported.err
    assert f"for {name} with 2 classes" in exported.out
    weights = torch.load("stock.pt", weights_only=True)
    assert weights.keys() == load_file(folder / "model.safetensors").keys()

    again = command("finetune", "--model", name, "--data", str(photos), *OPTIONS, "--weights", "stock.pt")
    assert again.status == 0, again.err


def test_a_network_with_other_weights_is_not_resumed(command: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    """It ended in an error of PyTorch, behind a ``config.json`` that said what the weights there are not."""
    asked = ("finetune", "mine:network", "--data", str(photos), *OPTIONS, "--workers", "0", "--output", "out")
    assert command(*asked).status == 0
    before = Path("out/config.json").read_bytes()
    (tmp_path / "mine.py").write_text(MINE.replace("range(3)", "range(4)"))
    sys.modules.pop("mine")
    resumed = command(*asked, "--epochs", "2", "--resume")
    assert resumed.status == 2
    assert "is of a network with other weights: blocks.3.inner.0.weight not there, (4, 4, 3, 3) now, " in resumed.err
    assert Path("out/config.json").read_bytes() == before


def test_weights_of_a_checkpoint_are_those_that_are_trained(
    command: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = vit(tmp_path / "vit"), []
    monkeypatch.setattr("momentumnet.cli.finetune.Comparison.run", lambda self, **_: seen.append(self.networks) or {})
    options = ("finetune", "--model", "hf:vit", "--data", str(photos), *OPTIONS)
    assert command(*options).status == 0
    found = dict(seen[0]["momentum"].named_parameters())
    for key, value in model.named_parameters():
        if not key.startswith("classifier"):
            assert torch.equal(found[key], value), key
    assert command(*options, "--weights", "none").status == 0
    assert not torch.equal(
        seen[1]["momentum"].get_parameter("vit.embeddings.cls_token"), found["vit.embeddings.cls_token"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "mine:dense"), "mine:dense is no classifier of images: of 2 images it makes (2, 4, 7, 7)"),
        (("--model", "mine:network", "--weights", "DEFAULT"), "--weights DEFAULT is no file, and names no weights of"),
        (("--model", "mine:nothing"), "module mine has no function 'nothing'"),
    ],
)
def test_what_is_no_classifier(
    command: Callable[..., Any], photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = command("finetune", *arguments, "--data", str(photos), *OPTIONS)
    assert done.status == 2
    assert message in done.err.splitlines()[-1]
