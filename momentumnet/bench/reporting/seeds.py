"""The rows of a benchmark that trains from several seeds, brought into figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from momentumnet.bench.reporting.results import Row

Case = dict[str, Any]  # what a row is about, its seed among it


def sort_rows(rows: list[Row], cases: Sequence[Case]) -> None:
    """Brings the rows of ``cases`` to the front, in their order."""
    order = {tuple(case.values()): index for index, case in enumerate(cases)}
    rows.sort(key=lambda row: order.get(tuple(row.get(name) for name in cases[0]), len(order)))


def groups(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by their values of ``names``: those that differ in their seeds alone stand together."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def done(rows: Sequence[Row]) -> list[Row]:
    """The rows that came to their end."""
    return [row for row in rows if "error" not in row]


def seeds(rows: Sequence[Row]) -> str:
    """How many rows came to their end."""
    count = len(done(rows))
    return str(count) if count == len(rows) else f"{count} of {len(rows)}"


def failures(rows: Sequence[Row], named: Callable[[Row], str]) -> list[str]:
    """A line for each error and the rows that it ended."""
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            failed.setdefault((named(row), row["error"]), []).append(str(row["seed"]))
    return [f"{name}, seed{'s' * (len(own) > 1)} {', '.join(own)}: {error}" for (name, error), own in failed.items()]


def mean(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and, of several values, standard deviation."""
    deviation = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"
