"""The table of ``bench zoo``."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence

import torch
import torchvision

from momentumnet.bench.zoo.measure import Row
from momentumnet.memory import format_bytes


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown document."""
    found = [row for row in rows if row.blocks]
    errors = [row.gradient_error for row in found if row.gradient_error is not None]
    lines = [
        "# Every torchvision model, converted",
        "",
        f"torchvision {torchvision.__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, {datetime.date.today()}. Random weights, small inputs, gamma 1/8, "
        '`others="keep"`. No names were given: the streams were found by tracing. '
        f"{len(found)} of {len(rows)} models have streams; largest gradient error {max(errors, default=0.0):.1e} "
        "(reversible against stored, one training step, relative L2).",
        "",
        "| model | streams (path:blocks) | blocks | kind | saved for backward | after | gradient error | note |",
        "|---|---|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        error = "" if row.gradient_error is None else f"{row.gradient_error:.1e}"
        before = format_bytes(row.saved_before) if row.blocks else ""
        after = format_bytes(row.saved_after) if row.blocks else ""
        lines.append(
            f"| {row.model} | {row.streams} | {row.blocks or ''} | {row.kind} | {before} | {after} | {error} "
            f"| {row.note} |"
        )
    return "\n".join(lines) + "\n"
