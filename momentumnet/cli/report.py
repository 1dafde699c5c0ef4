"""What a command shows: lines, tables, progress bars, and its result as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from momentumnet.cli.plain_report import PlainReport


class _Console(Console):
    """A console whose reader may go; rich would end the program by itself."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Report(PlainReport):
    """The output of one command, drawn by rich.

    Args:
        as_json: Whether stdout is kept for the result as JSON; everything else then goes to stderr.
        silent: Whether nothing is shown: another process of the same training speaks.
    """

    def __init__(self, *, as_json: bool = False, silent: bool = False) -> None:
        super().__init__(as_json=as_json and not silent)
        self.console = _Console(stderr=as_json, highlight=False, soft_wrap=True, quiet=silent)

    def line(self, text: str) -> None:
        """Prints one line of text, exactly as it stands."""
        self.console.print(text, markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, left: int = 1) -> None:
        """Prints a table whose first ``left`` columns hold text and whose others hold numbers."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index < left else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def progress(self) -> Progress:
        """A progress bar, to be used as a context manager; it leaves no trace when it is done.

        Where the output is no terminal there is none.
        """
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
