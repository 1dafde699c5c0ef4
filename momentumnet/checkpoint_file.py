"""Files of a run that may be killed: written whole or not at all, and refused where they do not belong."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from momentumnet.errors import CheckpointError

FORMAT = 1
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


def save(path: Path, settings: Mapping[str, object], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint in place of ``path``: a process killed at any moment leaves the old one or the new one.

    Args:
        path: Where it goes; a file ``path`` + ``.partial`` beside it is written first.
        settings: What makes the run the one that it is; plain numbers and text.
        content: State dicts, tensors, numbers and text.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, "settings": dict(settings), **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, settings: Mapping[str, object]) -> dict[str, Any]:
    """Reads the checkpoint that `save` wrote with the same ``settings``; tensors come to the CPU.

    Raises:
        CheckpointError: The file is damaged, was not written by `save`, or belongs to a run with other settings.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is damaged and cannot be resumed ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of momentumnet")
    saved = content["settings"]
    different = [
        f"{name} {saved.get(name)} there, {settings.get(name)} now"
        for name in sorted({*saved, *settings})
        if saved.get(name) != settings.get(name)
    ]
    if different:
        raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(different)})")
    return content
