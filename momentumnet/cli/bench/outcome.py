"""The end of a benchmark: its tables are shown, and written beside the rows with their plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from momentumnet.bench.reporting.results import Results, Row
from momentumnet.bench.reporting.tables import Table, write_markdown
from momentumnet.cli.plain_report import PlainReport


def finish(
    report: PlainReport,
    results: Results,
    tables: Sequence[Table],
    plot: Callable[[Sequence[Row], Path], None] | None = None,
) -> None:
    """Shows and writes what was measured.

    Args:
        report: Takes what the user is to see.
        results: The rows, which are written already.
        tables: The same for people.
        plot: Draws the rows to a PNG; None where there is nothing to draw.
    """
    for table in tables:
        report.table(table.columns, table.rows, title=table.title, left=table.left)
        for note in table.notes:
            report.line(note)
    report.result(results.values())  # first: a disk that is full by now does not cost it
    write_markdown(results.path.with_suffix(".md"), tables, results.header)
    if plot is not None:
        plot(results.rows, results.path.with_suffix(".png"))
    report.remark(f"Written: {results.path}, and .md {'' if plot is None else 'and .png '}beside it")
