"""The finished trainings of a lottery: in memory, or in a folder that outlives the process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from momentumnet.errors import CheckpointError
from momentumnet.files import checkpoint_file

Record = dict[str, Any]


class Trainings:
    """Records by name, each written once.

    With several processes the folder must be one that all of them see; the first one writes.

    Args:
        folder: Where the files go; None keeps the records in memory.
        settings: What must agree for a record of an earlier run to be used.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, object]) -> None:
        self._folder, self._settings = folder, settings
        self._memory: dict[str, Record] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Record | None:
        """The record, or None if there is none yet.

        Raises:
            CheckpointError: Its file is damaged or belongs to a run with other settings.
        """
        if self._folder is None:
            return self._memory.get(name)
        path = self._path(name)
        _wait_for_all()  # all look at the folder before one of them goes on and writes
        exists = path.exists()
        _wait_for_all()
        if not exists:
            return None
        try:
            return checkpoint_file.load(path, self._settings)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete it, or give another folder") from error

    def put(self, name: str, record: Record) -> None:
        """Keeps a record."""
        if self._folder is None:
            self._memory[name] = record
            return
        if not _several_processes() or dist.get_rank() == 0:
            checkpoint_file.save(self._path(name), self._settings, record)
        _wait_for_all()

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise ValueError("these trainings are kept in memory and have no path")
        return self._folder / f"{name}.pt"


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized()


def _wait_for_all() -> None:
    if _several_processes():
        dist.barrier()
