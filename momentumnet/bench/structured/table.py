"""The table of ``bench structured``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table
from momentumnet.bench.structured.measure import PIXELS


def table(rows: Sequence[Row], settings: Mapping[str, Any]) -> Table:
    """Size and time, a line for each network."""
    cells = [
        (
            row["gone"],
            row["network"],
            f"{row['parameters'] / 1e3:.0f}",
            f"{row['multiplications'] / 1e6:.1f}",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    notes = [
        f"ResNet-20 with batch norms, eval mode, batches of {settings['batch_size']} images of {PIXELS} x {PIXELS} "
        f"pixels; medians of {settings['repeats']} repeats that take turns, and their ratio to the dense network's. "
        "Channels are those inside the blocks, half of each layer's; blocks are 3 of the 9, of those that keep the "
        "shape. Multiplications: of one image."
    ]
    columns = ("gone", "network", "parameters, thousands", "multiplications, millions", "ms", "of dense")
    return Table("Forward time after structured pruning", columns, cells, notes=notes)
