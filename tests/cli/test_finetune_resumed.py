"""A run of momentumnet finetune that goes on: to the bit, and only as the run that it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.files import checkpoint_file, whole_file
from tests.cli.finetuned import interrupt_in_epoch, learned, weights


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


def test_an_interrupted_run_that_overwrites_goes_on_without_overwriting(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two options beside each other are refused."""
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        interrupted = finetune("--epochs", "2", "--output", "out", "--overwrite")
    assert interrupted.status == 130
    assert "the same command with --resume in the place of --overwrite goes on" in interrupted.out
    assert "resuming after epoch 1 of 2" in finetune("--epochs", "2", "--output", "out", "--resume").out


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
