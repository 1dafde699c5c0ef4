"""Checkpoints of a run that may be killed: refused where a byte has changed, or where they do not belong."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from momentumnet.errors import CheckpointError
from momentumnet.files import whole_file

FORMAT = 2
# What torch.load raises for a damaged file: its own reports, and whatever the unpickler runs into.
UNREADABLE = (
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
)


def previous(path: Path) -> Path:
    """Where `save` keeps the checkpoint that stood at ``path`` before."""
    return path.with_suffix(f".previous{path.suffix}")


def save(
    path: Path, settings: Mapping[str, object], content: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Writes a checkpoint in place of ``path``: a process killed at any moment leaves the old one or the new one.

    Args:
        path: Where it goes; a file ``path`` + ``.partial`` beside it is written first.
        settings: What makes the run the one that it is; plain numbers and text.
        content: State dicts, tensors, numbers and text.
        keep_previous: Whether the checkpoint that was there is kept beside it, at `previous`.

    Raises:
        StorageError: The disk is full, or the file cannot be written; the one that was there is there still.
    """

    def fill(sink: whole_file.Sink) -> None:
        torch.save({"format": FORMAT, "settings": dict(settings), **content}, sink)  # type: ignore[arg-type]
        sink.write(whole_file.UNSIGNED.encode())  # behind the archive, where torch.load does not look

    whole_file.write(path, fill, keep=previous(path) if keep_previous else None)


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that `save` wrote, of whatever settings; tensors come to the CPU.

    Raises:
        CheckpointError: The file is damaged, or was not written by `save`.
    """
    whole_file.verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is damaged and cannot be resumed ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of momentumnet")
    return content


def load(path: Path, settings: Mapping[str, object]) -> dict[str, Any]:
    """Reads the checkpoint that `save` wrote with the same ``settings``; tensors come to the CPU.

    Raises:
        CheckpointError: The file is damaged, was not written by `save`, or belongs to a run with other settings.
    """
    content = read(path)
    check_settings(path, content["settings"], settings)
    return content


def check_settings(path: Path, saved: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Compares the settings of a checkpoint with those of now.

    Raises:
        CheckpointError: They differ.
    """
    different = [
        f"{name} {saved.get(name)} there, {settings.get(name)} now"
        for name in sorted({*saved, *settings})
        if saved.get(name) != settings.get(name)
    ]
    if different:
        raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(different)})")
