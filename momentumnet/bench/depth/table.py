"""The table of ``bench depth``."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.bench.measuring.training_step import OVER_BUDGET
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.memory import format_bytes


def table(rows: Sequence[Row], name: str, shape: Sequence[int], budget: int | None) -> Table:
    """Memory and time, a line for each number of blocks and method.

    Args:
        rows: What was measured.
        name: Kind of block.
        shape: The input's.
        budget: Bytes that a step may take; below the table stands then the deepest network within them.
    """
    cells = []
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["depth"] != row["depth"]
        seconds = row["step_seconds"]
        cells.append(
            (
                str(row["depth"]) if first else "",
                row["method"],
                *[format_bytes(row[key]) if row[key] else "" for key in ("peak_bytes", "saved_bytes")],
                row["error"] if seconds is None else f"{seconds * 1000:.0f} ms",
            )
        )
    notes = [
        f"Input {','.join(map(str, shape))}; memory beside parameters and gradients, held: between forward and "
        "backward."
    ]
    return Table(
        f"One training step of {name} blocks",
        ("blocks", "method", "peak memory", "held", "step time"),
        cells,
        notes=[*notes, *([] if budget is None else _deepest(rows, budget))],
    )


def _deepest(rows: Sequence[Row], budget: int) -> list[str]:
    """A line for each method: the deepest network that it trains within the budget."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        fitting = [row for row in own if "error" not in row]
        best = max(fitting, key=lambda row: int(row["depth"]), default=None)
        failed = min((row for row in own if "error" in row), key=lambda row: int(row["depth"]), default=None)
        what = "none" if best is None else f"{best['depth']} blocks, peak {format_bytes(best['peak_bytes'])}"
        end = "the deepest tried" if failed is None else _why_no_deeper(failed)
        lines.append(f"Deepest network within {format_bytes(budget)}, {method}: {what} ({end}).")
    return lines


def _why_no_deeper(failed: Row) -> str:
    """Of a network that could not be trained: beside want of memory a method may fail by anything else."""
    depth, why = failed["depth"], failed["error"]
    return f"{depth} blocks do not fit" if why == OVER_BUDGET else f"{depth} blocks: {why}"


def simulated_table(rows: Sequence[Row]) -> Table:
    """Predicted bytes, a line for each network and way."""
    cells = [
        (
            row["network"],
            row["method"],
            f"{row['parameters'] / 1e9:.3g}",
            format_bytes(row["peak_bytes"]),
            format_bytes(row["saved_bytes"]),
            f"{row['estimated_time_to_stored']:.2f}",
        )
        for row in rows
    ]
    columns = ("network", "method", "parameters, billions", "peak", "held", "estimated time ×")
    notes = (
        "Planned on tensors without values, nothing was run: bytes of tensors in one step, gradients of parameters "
        "included, parameters and the work space of kernels not; times as multiples of stored activations, from counts "
        "of operations and bytes. 'stored': everything is kept; 'least': the plan of the least budget.",
    )
    return Table("Training steps that are not run", columns, cells, notes=notes)
