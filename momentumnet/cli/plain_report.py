"""What a command shows where rich is not installed: lines and tables as plain text, and its result as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class PlainReport:
    """The output of one command.

    Args:
        as_json: Whether stdout is kept for the result as JSON; everything else then goes to stderr.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json

    def line(self, text: str) -> None:
        """Prints one line of text, exactly as it stands."""
        print(text, file=sys.stderr if self._as_json else sys.stdout)

    def note(self, text: str) -> None:
        """Prints one line of text to stderr, beside a result that others read."""
        print(text, file=sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, left: int = 1) -> None:
        """Prints a table whose first ``left`` columns hold text and whose others hold numbers."""
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        self.line(title)
        for row in (columns, *rows):
            cells = [
                cell.ljust(width) if index < left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line("  ".join(cells).rstrip())

    def result(self, values: Mapping[str, Any]) -> None:
        """Prints the result as one JSON object, if JSON was asked for."""
        if self._as_json:
            json.dump(values, sys.stdout, indent=2)
            sys.stdout.write("\n")
