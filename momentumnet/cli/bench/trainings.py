"""The trainings of a benchmark that trains from several seeds, one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Results, Row
from momentumnet.bench.reporting.seeds import Case

if TYPE_CHECKING:
    from momentumnet.cli.report import Report


def begin(
    options: argparse.Namespace, command: str, name: str, settings: Mapping[str, Any], device: torch.device
) -> Results:
    """The results ``name`` in ``--output``, with the rows that are there unless ``--restart`` forgets them.

    Raises:
        CheckpointError: The rows that are there are of other settings.
    """
    return Results.begin(
        options.output / f"{name}.json",
        command=command,
        device=device,
        settings=settings,
        resume=not options.restart,
        anew="add --restart to forget it",
    )


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
    """Adds the rows that are missing, each as soon as it is done, and brings those of ``cases`` to the front.

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
        report.remark(f"{len(cases) - len(missing)} of {len(cases)} rows are done already, in {results.path}")
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
                report.remark(f"{label}: {row['error'] if 'error' in row else outcome(row)}")
    except KeyboardInterrupt:
        report.remark(f"Interrupted: the same command goes on after the rows that are done, in {results.path}.")
        raise
    seeds.sort_rows(results.rows, cases)
