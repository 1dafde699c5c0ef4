"""What a command shows: lines, tables, progress bars, and its result as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from momentumnet.cli.plain_report import PlainReport
from momentumnet.cli.table_layout import Layout, Rows


class _Console(Console):
    """A console whose reader may go; rich would end the program by itself."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _ImagesPerSecond(ProgressColumn):
    """How fast tasks go on that have ``images`` in each of their steps."""

    def render(self, task: Task) -> Text:
        images = task.fields.get("images")
        return Text(f"{task.speed * images:.0f} images/s" if images and task.speed else "")


class Report(PlainReport):
    """The output of one command, drawn by rich.

    Args:
        as_json: Whether stdout is kept for the result as JSON; everything else then goes to stderr.
        quiet: Whether remarks and progress are left out.
        silent: Whether nothing is shown: another process of the same training speaks.
    """

    gap = 3  # a line, and a blank on either side of it

    def __init__(self, *, as_json: bool = False, quiet: bool = False, silent: bool = False) -> None:
        super().__init__(as_json=as_json and not silent, quiet=quiet)
        self.console = _Console(stderr=as_json, highlight=False, soft_wrap=True, quiet=silent)

    @property
    def width(self) -> int:
        """Characters of a line, without the table's two edges."""
        return self.console.width - 4

    def line(self, text: str) -> None:
        """Prints one line of text, exactly as it stands."""
        self.console.print(text, markup=False)

    def _draw(self, found: Layout, columns: Sequence[str], rows: Rows, *, title: str, left: int) -> None:
        table = Table(title=Text(title), title_justify="left")
        for place, width in zip(found.shown, found.widths, strict=True):
            table.add_column(Text(columns[place]), justify="left" if place < left else "right", width=width)
        for row in rows:
            table.add_row(*(Text(row[place]) for place in found.shown))
        self.console.print(table)

    def progress(self) -> Progress:
        """A progress bar, to be used as a context manager; it leaves no trace when it is done.

        Where the output is no terminal there is none. A task with ``images`` shows how many go by in a second.
        """
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            _ImagesPerSecond(),
            console=self.console,
            transient=True,
            disable=self.quiet or not self.console.is_terminal,
        )
