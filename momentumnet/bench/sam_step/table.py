"""The table of ``bench sam-step``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.sam_step.operations import REFERENCE

TARGET = 1.05


def table(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    """Time and memory, a line for each case and method."""
    cells, previous = [], None
    for row in rows:
        case = f"{row['batch']} x {row['size']}²"
        cells.append(
            (
                "" if case == previous else case,
                row["method"],
                f"{1000 * row['seconds']:.1f}",
                f"{row['time_to_reference']:.3f}",
                f"{row['extra_copies']:+.2f}",
            )
        )
        previous = case
    notes = [
        f"{settings['network']} of torchvision, 10 classes, SGD with momentum; cases are images in a batch x their "
        f"side squared. Medians of {settings['repeats']} runs, in which the methods took turns; to reference: to the "
        f"median of '{REFERENCE}', which is two forward and backward passes and one step of SGD. "
        f"Target for SAM: at most {TARGET}.",
        "copies: peak memory of a step beyond that of the reference, in copies of the parameters, by measure_memory. "
        "blocks= perturbs one residual block at a time, or all that is in none; the figure is of the largest of them.",
    ]
    columns = ("case", "method", "ms", "to reference", "copies")
    return Table("A step of SAM", columns, cells, notes=notes)
