"""Checkpoints of the command line's training runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from momentumnet import checkpoint_file
from momentumnet.checkpoint_file import save
from momentumnet.cli.errors import CommandError
from momentumnet.errors import CheckpointError
from momentumnet.resume import load_training_state

__all__ = ["load", "load_streams", "save"]


def load(path: Path, settings: Mapping[str, object]) -> dict[str, Any]:
    """Reads a checkpoint; one that cannot be used is an error that names the options for it.

    Raises:
        CommandError: The file is damaged, is no checkpoint, or belongs to a run with other settings.
    """
    try:
        return checkpoint_file.load(path, settings)
    except CheckpointError as error:
        raise _unusable(str(error)) from error


def load_streams(path: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives the model's streams the training state that a checkpoint holds.

    Raises:
        CommandError: It belongs to other streams.
    """
    try:
        load_training_state(model, state)
    except CheckpointError as error:
        raise _unusable(f"{path} cannot be resumed: {error}") from error


def _unusable(reason: str) -> CommandError:
    return CommandError(f"{reason}; start without --resume, or choose another --output")
