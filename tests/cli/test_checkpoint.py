from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.cli import checkpoint
from momentumnet.cli.errors import CommandError

SETTINGS = {"model": "resnet18", "lr": 0.1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, SETTINGS, {"weights": torch.arange(1000), "epoch": 1})
    return path


def test_comes_back_as_it_was(path: Path) -> None:
    content = checkpoint.load(path, SETTINGS)
    assert torch.equal(content["weights"], torch.arange(1000))
    assert content["epoch"] == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_torn_file_is_refused(path: Path, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CommandError, match=r"checkpoint\.pt is damaged .* start without --resume"):
        checkpoint.load(path, SETTINGS)


def test_file_of_something_else_is_refused(path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(CommandError, match="not a checkpoint of this version"):
        checkpoint.load(path, SETTINGS)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"model": "resnet18", "lr": 0.2}, r"lr 0\.1 there, 0\.2 now"),
        ({"model": "resnet18"}, r"lr 0\.1 there, None now"),
        ({**SETTINGS, "gamma": "1/8"}, "gamma None there, 1/8 now"),
    ],
)
def test_run_with_other_settings_is_refused(path: Path, settings: dict[str, object], difference: str) -> None:
    with pytest.raises(CommandError, match=difference):
        checkpoint.load(path, settings)


def test_dying_while_writing_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, SETTINGS, {"weights": torch.zeros(1000), "epoch": 2})
    assert checkpoint.load(path, SETTINGS)["epoch"] == 1
