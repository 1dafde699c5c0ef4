"""The plot of ``bench depth``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.reporting.plots import COLOURS, add_legend, figure_panels
from momentumnet.bench.reporting.results import Row
from momentumnet.memory import format_bytes

MIB = 1024**2


def plot_depth(rows: Sequence[Row], path: Path, *, title: str, budget: int | None) -> None:
    """Draws peak memory and step time against depth, a line for each method.

    Args:
        rows: Peak and duration of a step (None where it was not timed) by depth and method.
        path: Where the PNG goes.
        title: Title of the figure.
        budget: Bytes that are drawn as a line across, if any.
    """
    colours = dict(zip(dict.fromkeys(row["method"] for row in rows), itertools.cycle(COLOURS)))
    with figure_panels(path, 2, (3.7, 3.4), title=title) as (left, right):
        for method, colour in colours.items():
            own = sorted((row for row in rows if row["method"] == method), key=lambda row: int(row["depth"]))
            memory = [(row["depth"], row["peak_bytes"] / MIB) for row in own if row["peak_bytes"]]
            time = [(row["depth"], row["step_seconds"]) for row in own if row["step_seconds"]]
            _line(left, memory, method, colour)
            _line(right, time, method, colour)
        if budget is not None:
            text = f"budget, {format_bytes(budget)}:\na line ends behind it"
            left.axhline(budget / MIB, color="grey", linewidth=1, linestyle="--", label=text)
        for axes, label in ((left, "peak memory of a step, MiB"), (right, "time of a step, s")):
            axes.set(xlabel="number of residual blocks", ylabel=label, ylim=(0, None), xlim=(0, None))
            axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        add_legend((left, right))


def _line(axes: Any, points: Sequence[tuple[int, float]], name: str, colour: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.8, color=colour, label=name)
