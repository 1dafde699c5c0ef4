"""What a benchmark leaves behind: one JSON file that says where, when and with what it was measured, and a table."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision

from momentumnet import native
from momentumnet.arithmetic.compiled import libraries
from momentumnet.cli.errors import CommandError

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

Row = dict[str, Any]


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware that a benchmark runs on."""
    found = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "kernels": kernels_on(device),
    }
    return {**found, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else found


def kernels_on(device: torch.device) -> str:
    """Which implementation of the momentum step serves a device, and why if it is the slow one."""
    if reason := native.reason(device):
        return f"reference ({reason})"
    return "native" if device.type == "cuda" else f"native, {libraries.cpu().variant}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """The software that a benchmark runs on."""
    from momentumnet import __version__

    return {
        "momentumnet": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }


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
            CommandError: ``resume``, and the file holds something else.
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
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.values(), indent=1) + "\n")
        os.replace(partial, self.path)

    def values(self) -> dict[str, Any]:
        """Header and rows."""
        return {**self.header, "rows": self.rows}


def _earlier_rows(path: Path, header: Mapping[str, Any], anew: str) -> list[Row]:
    try:
        earlier = json.loads(path.read_text())
        rows: list[Row] = earlier.pop("rows")
    except (ValueError, AttributeError, KeyError):
        raise CommandError(f"{path} does not hold the results of a benchmark; {anew}") from None
    plain = json.loads(json.dumps(header))
    for part in ("command", "machine", "versions", "settings"):
        if earlier.get(part) != plain[part]:
            raise CommandError(
                f"{path} was measured with other {part}: {earlier.get(part)} there, {plain[part]} now; {anew}, "
                "or write to another --output"
            )
    return rows


@dataclass(frozen=True)
class Table:
    """A table for people, on the terminal and in Markdown.

    Attributes:
        title: What is shown.
        columns: Headings.
        rows: Cells, as text.
        notes: Lines below the table.
        left: Number of columns that hold text; the others hold numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 2

    def show(self, report: Report) -> None:
        """Prints the table."""
        report.table(self.columns, self.rows, title=self.title, left=self.left)
        for note in self.notes:
            report.line(note)

    def markdown(self) -> str:
        """The table in Markdown, below its title."""
        aligned = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, aligned, *self.rows)]
        return "\n".join([f"# {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)])


def write_markdown(path: Path, tables: Sequence[Table], header: Mapping[str, Any]) -> None:
    """Writes tables to one file, with where and when they were measured."""
    path.write_text("\n\n".join([*(table.markdown() for table in tables), _provenance(header)]) + "\n")


def _provenance(header: Mapping[str, Any]) -> str:
    where, what = header["machine"], header["versions"]
    hardware = where.get("gpu") or f"{where['processor']}, {where['cores']} cores, {where['threads']} threads"
    hardware += f"; kernels: {where['kernels']}"
    return f"Measured on {hardware}; momentumnet {what['momentumnet']}, torch {what['torch']}; {header['date']}."
