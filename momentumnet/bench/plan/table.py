"""The table of ``bench plan``."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.memory import format_bytes

NOTE = (
    "One forward and backward pass in training mode, gradients of parameters included. Predicted: by the plan, before "
    "it is followed; measured: of the converted network, by measure_memory. 'least' has the least budget there is, "
    "'stored' so much that nothing is recomputed, 'middle' lies between. Held: between forward and backward. Planning: "
    "the time of the plan for the least budget at one gamma, none tried out, in training steps of the network as it is."
)


def table(rows: Sequence[Row]) -> Table:
    """Predicted and measured bytes, a line for each network, batch, type and budget."""
    cells = [
        (
            row["network"],
            row["dtype"],
            str(row["batch"]),
            row["budget"],
            format_bytes(row["predicted_bytes"]),
            format_bytes(row["peak_bytes"]),
            f"{row['ratio']:.3f}",
            f"{row['predicted_held'] / row['saved_bytes']:.3f}",
            f"{row['planning_seconds'] / row['step_seconds']:.1f}",
        )
        for row in rows
    ]
    columns = ("network", "type", "batch", "budget", "predicted peak", "measured", "ratio", "ratio of held", "planning")
    worst = max((abs(row["ratio"] - 1) for row in rows), default=0.0)
    return Table("Planned training steps", columns, cells, notes=(NOTE, f"Farthest off: {worst:.1%}."))
