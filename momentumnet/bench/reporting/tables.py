"""Tables of measurements, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momentumnet.files import whole_file


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

    def markdown(self) -> str:
        """The table in Markdown, below its title."""
        aligned = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, aligned, *self.rows)]
        return "\n".join([f"# {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)])


def write_markdown(path: Path, tables: Sequence[Table], header: Mapping[str, Any]) -> None:
    """Writes tables to one file, with where and when they were measured."""
    text = "\n\n".join([*(table.markdown() for table in tables), _provenance(header)])
    whole_file.write_text(path, text + "\n")


def _provenance(header: Mapping[str, Any]) -> str:
    where, what = header["machine"], header["versions"]
    hardware = where.get("gpu") or f"{where['processor']}, {where['cores']} cores, {where['threads']} threads"
    hardware += f"; kernels: {where['kernels']}"
    return f"Measured on {hardware}; momentumnet {what['momentumnet']}, torch {what['torch']}; {header['date']}."
