"""What a command shows where rich is not installed: lines and tables as plain text, and its result as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from momentumnet.cli.json_values import in_json
from momentumnet.cli.table_layout import Layout, Rows, blocks, extent, layout, wrapped

Made = TypeVar("Made", bound="PlainReport")


class PlainReport:
    """The output of one command.

    Args:
        as_json: Whether stdout is kept for the result as JSON; everything else then goes to stderr.
        quiet: Whether remarks and progress are left out.
    """

    gap = 2  # characters between two columns of a table

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._as_json, self.quiet = as_json, quiet

    @classmethod
    def of(cls: type[Made], options: argparse.Namespace, **own: bool) -> Made:
        """That which a command's options ask for; ``own`` are further arguments."""
        return cls(as_json=options.json, quiet=options.quiet, **own)

    @property
    def width(self) -> int:
        """Characters of a line."""
        return shutil.get_terminal_size().columns

    def line(self, text: str) -> None:
        """Prints one line of text, exactly as it stands."""
        print(text, file=sys.stderr if self._as_json else sys.stdout)

    def remark(self, text: str) -> None:
        """Prints one line that tells how far it is, or what else could be done: nothing where that is not wanted."""
        if not self.quiet:
            self.line(text)

    def note(self, text: str) -> None:
        """Prints one line of text to stderr, beside a result that others read."""
        print(text, file=sys.stderr)

    def table(
        self,
        columns: Sequence[str],
        rows: Rows,
        *,
        title: str,
        left: int = 1,
        spare: Collection[str] = (),
    ) -> None:
        """Prints a table, or where it has no room each row as a block.

        Args:
            columns: Headings.
            rows: Cells.
            title: Above it.
            left: Number of columns that hold text; the others hold numbers.
            spare: Columns that are left out where there is no room, the first one first.
        """
        found = layout(columns, rows, left=left, width=self.width, gap=self.gap, spare=spare)
        if found is not None:
            self._draw(found, columns, rows, title=title, left=left)
            return
        self.line(title)
        for line in blocks(columns, rows, left=left, width=self.width):
            self.line(line)

    def _draw(self, found: Layout, columns: Sequence[str], rows: Rows, *, title: str, left: int) -> None:
        self.line(title)
        for row in (columns, *rows):
            cells = [wrapped(row[place], width) for place, width in zip(found.shown, found.widths, strict=True)]
            for texts in zip_longest(*cells, fillvalue=""):
                parts = [
                    _padded(text, width, number=place >= left)
                    for place, text, width in zip(found.shown, texts, found.widths, strict=True)
                ]
                self.line((" " * self.gap).join(parts).rstrip())

    def result(self, values: Mapping[str, Any]) -> None:
        """Prints the result as one JSON object, if JSON was asked for."""
        if self._as_json:
            json.dump(in_json(values), sys.stdout, indent=2)
            sys.stdout.write("\n")


def _padded(text: str, width: int, *, number: bool) -> str:
    blank = " " * (width - extent(text))
    return blank + text if number else text + blank
