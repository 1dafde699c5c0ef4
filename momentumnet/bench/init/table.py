"""The table of ``bench init``, and its rows in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.trainings.recipe import described

# Of the error of `momentumnet.init.fixup_`.
NO_BRANCH = "no residual block found"
NOTHING, NOTHING_NOTE = "–", "–: Fixup scales residual branches, and this network has none."


def named(row: Row) -> str:
    """What a row is called, but for its seed."""
    return f"{row['model']}, {row['method']}"


def outcome(row: Row) -> str:
    """What a row came to, in words."""
    return f"Acc_1 {row['acc_1']:.2f}, Acc_best {row['acc_best']:.2f}, {row['seconds']:.0f} s"


def table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    """Accuracies, a line for each network and method."""
    groups = seeds.groups(rows, "model", "method")
    models = [model for model, _ in groups]
    cells = []
    for index, ((model, method), own) in enumerate(groups.items()):
        shown = model if index == 0 or models[index - 1] != model else ""
        cells.append((shown, method, *_figures(own)))
    notes = [
        described(settings),
        "Test accuracy (%): mean and standard deviation over the seeds. Acc_1: after the first epoch of the schedule, "
        "which for constant and warmup is the second one of the training.",
        *([NOTHING_NOTE] if any(map(_has_no_branch, rows)) else []),
        *seeds.failures([row for row in rows if not _has_no_branch(row)], named),
    ]
    columns = ("model", "method", "Acc_1", "Acc_best", "seeds", "initialisation", "row")
    return Table("Accuracy by initialisation", columns, cells, notes=notes)


def _has_no_branch(row: Row) -> bool:
    """Whether a row says that an initialisation of residual branches is not for its network, and no fault."""
    return NO_BRANCH in row.get("error", "")


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    """Accuracies of the rows that came to their end, how many did, and times."""
    done = seeds.done(rows)
    if not done:
        shown = NOTHING if all(map(_has_no_branch, rows)) else "fails"
        return (shown, shown, seeds.seeds(rows), "", "")
    accuracies = [seeds.mean([row[key] for row in done]) for key in ("acc_1", "acc_best")]
    times = [f"{statistics.mean(row[key] for row in done):.1f} s" for key in ("init_seconds", "seconds")]
    return (*accuracies, seeds.seeds(rows), *times)
