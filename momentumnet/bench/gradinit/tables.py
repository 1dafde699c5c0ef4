"""The tables of ``bench gradinit``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momentumnet.bench.gradinit.networks import GAMMA, LR, STEP_SIZE
from momentumnet.bench.gradinit.objective import PROBES
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table

MIB = 2**20


def tables(rows: Sequence[Row], settings: Mapping[str, Any]) -> list[Table]:
    """How the objective falls, and an iteration's cost."""
    return [_fall(rows, settings), _cost(rows)]


def _fall(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    cells = [
        (
            row["start"],
            f"gamma {GAMMA:g}" if row["converted"] else "no",
            f"{row['gradient_norms'][0]:.3g}",
            f"{row['gradient_norms'][-1]:.3g}",
            str(settings["steps"] - len(row["losses"])),
            "not finite" if row["before"] is None else f"{row['before']:.3f}",
            f"{row['after']:.3f}",
            "" if row["before"] is None else f"{100 * (1 - row['after'] / row['before']):.0f} %",
        )
        for row in rows
        if row["part"] == "fall"
    ]
    what = f"ResNet-{settings['depth']} without normalisation, {settings['data']}, batch {settings['batch_size']}"
    notes = [
        f"{what}; SGD, step size {STEP_SIZE}, gradient norm at most 1, lr {LR}. The objective, the loss after "
        f"one step, is taken on {PROBES} pairs of batches in an order that GradInit has not seen; 'violated': "
        "iterations that went down the gradient's norm."
    ]
    columns = ("start", "converted", "gradient norm first", "last", "violated", "objective before", "after", "fall")
    return Table(f"GradInit's objective, before and after {settings['steps']} iterations", columns, cells, notes=notes)


def _cost(rows: Sequence[Row]) -> Table:
    cells = [
        (row["network"], row["case"], row["method"], f"{row['seconds']:.2f}", f"{row['peak_bytes'] / MIB:.0f}")
        for row in rows
        if row["part"] == "cost"
    ]
    notes = ["32 x 32 pixels, SGD; fastest run; peak of what an iteration allocates, as measure_memory counts."]
    columns = ("network", "constraint", "method", "seconds", "peak, MiB")
    return Table("An iteration's cost", columns, cells, notes=notes, left=3)
