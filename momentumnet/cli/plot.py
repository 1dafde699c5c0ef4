"""The plot of memory and time against depth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from momentumnet.cli.probe import StepCost

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; black for the reference.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MIB = 1024**2


def plot_depth(costs: Mapping[int, Mapping[str, StepCost]], path: Path, *, title: str) -> None:
    """Draws peak memory and step time against depth, a line for each method, labelled at its end.

    Args:
        costs: Cost of a step by number of blocks, then by method.
        path: Where the PNG goes.
        title: Title of the figure.
    """
    depths = sorted(costs)
    methods = list(costs[depths[0]])
    memory = {name: [costs[depth][name].memory.peak_bytes / MIB for depth in depths] for name in methods}
    seconds = {name: [costs[depth][name].seconds for depth in depths] for name in methods}
    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        _draw(left, depths, memory, "peak memory, MiB")
        _draw(right, depths, seconds, "time of a step, s")
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, dpi=200)
        pyplot.close(figure)


def _draw(axes: Any, depths: Sequence[int], lines: Mapping[str, Sequence[float]], label: str) -> None:
    for values, colour in zip(lines.values(), itertools.cycle(COLOURS)):
        axes.plot(depths, values, marker="o", markersize=3.5, linewidth=1.8, color=colour)
    heights = _spread([values[-1] for values in lines.values()], smallest=0.06 * axes.get_ylim()[1])
    for (name, values), height, colour in zip(lines.items(), heights, itertools.cycle(COLOURS)):
        axes.annotate(
            name,
            xy=(depths[-1], values[-1]),
            xytext=(depths[-1] * 1.04, height),
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axes.set(xlabel="residual blocks", ylabel=label, xticks=depths, ylim=(0, None), xlim=(0, None))
    axes.grid(axis="y", linewidth=0.5, alpha=0.4)


def _spread(heights: Sequence[float], *, smallest: float) -> list[float]:
    """Moves labels apart that would lie on one another; the order stays."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + smallest)
    return placed
