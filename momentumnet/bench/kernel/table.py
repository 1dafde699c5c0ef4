"""The tables of ``bench kernel``."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table


def table(rows: Sequence[Row], implementation: str) -> Table:
    """Time and rate, a line for each operation and case; ``implementation`` says which kernels were measured."""
    cells = [
        (
            row["operation"],
            str(row["gamma"]),
            str(row["elements"]),
            str(row["threads"]),
            f"{row['seconds'] * 1000:.3g} ms",
            f"{row['bytes_per_second'] / 1e9:.3g} GB/s",
            f"{row['rate_to_add']:.3g}",
        )
        for row in rows
    ]
    return Table(
        "The momentum step's bandwidth",
        ("operation", "gamma", "elements", "threads", "time", "rate", "rate to x.add_(v)"),
        cells,
        notes=(
            f"Kernels: {implementation}.",
            "Every operation moves the same bytes, 28 for each element of the state (32 at a gamma whose store takes "
            "the whole word); x.add_(v) runs over as many floats as that takes. 1 in the last column is the speed of "
            "memory.",
        ),
        left=1,
    )


def state_table(rows: Sequence[Row]) -> Table:
    """Bytes of the state, a line for each dtype, gamma and number of blocks."""
    cells = [
        (
            row["dtype"],
            row["gamma"],
            str(row["blocks"]),
            f"{row['bytes_in_motion']:.2f}",
            f"{row['bytes_at_rest']:.2f}",
            f"{row['bytes_put_aside']:.2f}",
        )
        for row in rows
    ]
    return Table(
        "Bytes of a stream's state, for each element",
        ("dtype", "gamma", "blocks", "in motion", "at rest", "put aside"),
        cells,
        notes=(
            "As the allocator reports them (`measure_memory`). In motion: between two blocks. At rest: between forward "
            "and backward. Put aside: what all the blocks' steps together have kept so that they can be undone.",
        ),
        left=1,
    )
