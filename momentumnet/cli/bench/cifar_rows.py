"""The rows of a benchmark that trains from several seeds: trained one by one, and brought into figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from momentumnet.cli.bench.results import Results, Row

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

Case = dict[str, Any]  # what a row is about, its seed among it


class Trainable(Protocol):
    """A training that makes a row."""

    @property
    def epochs(self) -> int:
        """Epochs in all."""

    def row(self, advance: Callable[[], object]) -> Row:
        """Runs it; ``advance`` is called after each epoch."""


def train_missing(
    cases: Sequence[Case],
    results: Results,
    training_of: Callable[[Case], Trainable],
    *,
    named: Callable[[Row], str],
    outcome: Callable[[Row], str],
    report: Report,
) -> None:
    """Adds the rows that are missing, each as soon as it is done.

    Args:
        cases: The rows that are wanted.
        results: Where they go.
        training_of: Makes the training of a case.
        named: What a case or row is called, but for its seed.
        outcome: What a row came to, in words.
        report: Takes what the user is to see.
    """
    missing = [case for case in cases if not results.holds(**case)]
    if len(missing) < len(cases):
        report.line(f"{len(cases) - len(missing)} of {len(cases)} rows are done already, in {results.path}")
    try:
        with report.progress() as progress:
            rows = progress.add_task("rows", total=len(missing))
            for case in missing:
                label, training = f"{named(case)}, seed {case['seed']}", training_of(case)
                task = progress.add_task(label, total=training.epochs)
                row = training.row(lambda task=task: progress.advance(task))  # type: ignore[misc]
                results.add([{**case, **row}])
                progress.remove_task(task)
                progress.advance(rows)
                report.line(f"{label}: {row['error'] if 'error' in row else outcome(row)}")
    except KeyboardInterrupt:
        report.line(f"Interrupted: the same command goes on after the rows that are done, in {results.path}.")
        raise


def sort_rows(results: Results, cases: Sequence[Case]) -> None:
    """Brings the rows of ``cases`` to the front, in their order."""
    order = {tuple(case.values()): index for index, case in enumerate(cases)}
    results.rows.sort(key=lambda row: order.get(tuple(row[name] for name in cases[0]), len(order)))


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
