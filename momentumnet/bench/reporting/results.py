"""What a benchmark leaves behind: one JSON file that says where, when and with what it was measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from momentumnet.bench.reporting.machine import machine, versions
from momentumnet.errors import CheckpointError
from momentumnet.files import whole_file

Row = dict[str, Any]


@dataclass
class Results:
    """Rows of measurements, written to ``path`` whenever some are added, so that an interrupted run keeps them.

    Attributes:
        path: The JSON file.
        header: Everything beside the rows.
        rows: One measurement each, as plain values.
    """

    path: Path
    header: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        path: Path,
        *,
        command: str,
        device: torch.device,
        settings: Mapping[str, Any],
        resume: bool = False,
        anew: str = "run without --resume",
    ) -> Results:
        """An empty result, or that of an earlier run with the same settings on the same machine.

        Args:
            path: The JSON file.
            command: The command's name.
            device: What is measured.
            settings: What makes the run the one that it is.
            resume: Whether to go on with what the file holds.
            anew: How the user begins anew instead, for the error message.

        Raises:
            CheckpointError: ``resume``, and the file holds something else.
        """
        header = {
            "command": command,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(device),
            "versions": versions(),
            "settings": dict(settings),
        }
        results = cls(path, header)
        if resume and path.exists():
            results.rows = _earlier_rows(path, header, anew)
        path.parent.mkdir(parents=True, exist_ok=True)
        return results

    def holds(self, **key: Any) -> bool:
        """Whether there is a row with these values."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Appends rows and writes the file: a process ended at any moment leaves the old one or the new one."""
        self.rows += rows
        whole_file.write_json(self.path, self.values(), indent=1)

    def values(self) -> dict[str, Any]:
        """Header and rows."""
        return {**self.header, "rows": self.rows}


def _earlier_rows(path: Path, header: Mapping[str, Any], anew: str) -> list[Row]:
    try:
        earlier = whole_file.read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {anew}") from error
    if "rows" not in earlier:
        raise CheckpointError(f"{path} does not hold the results of a benchmark; {anew}")
    rows: list[Row] = earlier.pop("rows")
    plain = json.loads(json.dumps(header))
    for part in ("command", "machine", "versions", "settings"):
        if earlier.get(part) != plain[part]:
            raise CheckpointError(
                f"{path} was measured with other {part}: {earlier.get(part)} there, {plain[part]} now; {anew}, "
                "or write to another --output"
            )
    return rows
