"""The plot of ``bench depth``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.plots import COLOURS, figure_panels
from momentumnet.bench.results import Row

MIB = 1024**2


def plot_depth(rows: Sequence[Row], path: Path, *, title: str, budget: int | None) -> None:
    """Draws peak memory and step time against depth, a line for each method, labelled at its end.

    Args:
        rows: Peak and duration of a step (None where it was not timed) by depth and method.
        path: Where the PNG goes.
        title: Title of the figure.
        budget: Bytes that are drawn as a line across, if any.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {"memory": {}, "seconds": {}}
    for method in methods:
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: int(row["depth"]))
        lines["memory"][method] = [(row["depth"], row["peak_bytes"] / MIB) for row in own]
        lines["seconds"][method] = [(row["depth"], row["step_seconds"]) for row in own if row["step_seconds"]]
    with figure_panels(path, 2, (3.7, 3.4), title=title) as (left, right):
        _lines(left, lines["memory"], "peak memory, MiB")
        _lines(right, lines["seconds"], "time of a step, s")
        if budget is not None:
            left.axhline(budget / MIB, color="grey", linewidth=1, linestyle="--")


def _lines(axes: Any, lines: Mapping[str, Sequence[tuple[int, float]]], label: str) -> None:
    drawn = {name: points for name, points in lines.items() if points}
    colours = dict(zip(lines, itertools.cycle(COLOURS)))
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.8, color=colours[name])
    ends = {name: points[-1] for name, points in drawn.items()}
    heights = _spread([height for _, height in ends.values()], smallest=0.06 * axes.get_ylim()[1])
    widest = max(depth for depth, _ in ends.values())
    for (name, (depth, end)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name,
            xy=(depth, end),
            xytext=(depth + 0.03 * widest, height),
            color=colours[name],
            va="center",
            annotation_clip=False,
        )
    axes.set(xlabel="residual blocks", ylabel=label, ylim=(0, None), xlim=(0, None))
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)


def _spread(heights: Sequence[float], *, smallest: float) -> list[float]:
    """Moves labels apart that would lie on one another; the order stays."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + smallest)
    return placed
