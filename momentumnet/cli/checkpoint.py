"""Checkpoints of the command line's training runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from momentumnet import checkpoint_file
from momentumnet.checkpoint_file import save
from momentumnet.cli.errors import CommandError
from momentumnet.errors import CheckpointError

__all__ = ["load", "save"]


def load(path: Path, settings: Mapping[str, object]) -> dict[str, Any]:
    """Reads a checkpoint; one that cannot be used is an error that names the options for it.

    Raises:
        CommandError: The file is damaged, is no checkpoint, or belongs to a run with other settings.
    """
    try:
        return checkpoint_file.load(path, settings)
    except CheckpointError as error:
        raise CommandError(f"{error}; start without --resume, or choose another --output") from error
