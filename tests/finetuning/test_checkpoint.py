from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.command_errors import UsageError
from momentumnet.files import checkpoint_file
from momentumnet.finetuning import checkpoint

SETTINGS: dict[str, object] = {"model": "resnet18", "lr": 0.1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, SETTINGS, {"weights": torch.arange(1000), "epoch": 1})
    return path


def load(path: Path, settings: dict[str, object] = SETTINGS) -> dict[str, Any]:
    content = checkpoint.load(path, settings, say=pytest.fail)
    assert content is not None
    return content


def test_comes_back_as_it_was(path: Path) -> None:
    content = load(path)
    assert torch.equal(content["weights"], torch.arange(1000))
    assert content["epoch"] == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_torn_file_is_refused(path: Path, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UsageError, match=r"checkpoint\.pt is damaged.* start without --resume"):
        load(path)


def test_file_of_something_else_is_refused(path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="was not written by this version: it carries no checksum"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"model": "resnet18", "lr": 0.2}, r"lr 0\.1 there, 0\.2 now"),
        ({"model": "resnet18"}, r"lr 0\.1 there, None now"),
        ({**SETTINGS, "gamma": "1/8"}, "gamma None there, 1/8 now"),
    ],
)
def test_run_with_other_settings_is_refused(path: Path, settings: dict[str, object], difference: str) -> None:
    with pytest.raises(UsageError, match=difference):
        load(path, settings)


def test_dying_while_writing_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, SETTINGS, {"weights": torch.zeros(1000), "epoch": 2})
    assert load(path)["epoch"] == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["flipped", "torn", "gone"])
def test_damaged_one_is_passed_over_for_the_one_before(path: Path, damage: str) -> None:
    checkpoint.save(path, SETTINGS, {"epoch": 2})
    whole, said = bytearray(path.read_bytes()), list[str]()
    if damage == "gone":  # killed between two renames
        path.unlink()
    else:
        whole[len(whole) // 2] ^= 4
        path.write_bytes(whole if damage == "flipped" else whole[:-9])
    content = checkpoint.load(path, SETTINGS, say=said.append)
    assert content is not None
    assert content["epoch"] == 1
    assert len(said) == (damage != "gone")
    checkpoint.save(path, SETTINGS, {"epoch": 2})
    assert checkpoint_file.load(checkpoint_file.previous(path), SETTINGS)["epoch"] == 1  # the good one is there still
    assert all("checkpoint.pt is damaged" in line and "going on from the checkpoint before it" in line for line in said)


def test_none_where_none_was_written(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "checkpoint.pt", SETTINGS, say=pytest.fail) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_what_would_be_refused_is_known_before(tmp_path: Path, damaged: bool) -> None:
    path, model = tmp_path / "checkpoint.pt", nn.Linear(2, 3)
    checkpoint.check(path, SETTINGS, model)
    for epoch in (1, 2):
        checkpoint.save(path, SETTINGS, {"model": model.state_dict(), "epoch": epoch})
    if damaged:
        path.write_bytes(path.read_bytes()[:-9])
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    checkpoint.check(path, SETTINGS, model)
    with pytest.raises(UsageError, match=r"lr 0\.1 there, 0\.2 now\); start without --resume"):
        checkpoint.check(path, {**SETTINGS, "lr": 0.2}, model)
    with pytest.raises(UsageError, match=r"other weights: weight \(3, 2\) there, \(5, 2\) now, bias .*; start without"):
        checkpoint.check(path, SETTINGS, nn.Linear(2, 5))
    with pytest.raises(UsageError, match=r"bias \(3,\) there, not now"):
        checkpoint.check(path, SETTINGS, nn.Linear(2, 3, bias=False))
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == files
