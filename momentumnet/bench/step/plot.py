"""The plot of ``bench step``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from momentumnet.bench.reporting.plots import COLOURS, add_legend, figure_panels
from momentumnet.bench.reporting.results import Row

MARKS = "oxs^v*DP<>"


def plot_step(rows: Sequence[Row], path: Path) -> None:
    """Draws peak memory and time of a step as multiples of stored activations, a panel for each network.

    A method has its colour, each way to convert at one gamma its mark.
    """
    networks = list(dict.fromkeys(row["network"] for row in rows))
    kinds = {row["method"]: row["method"].replace(" float", ", float").partition(", ") for row in rows}
    colours = dict(zip(dict.fromkeys(base for base, _, _ in kinds.values()), itertools.cycle(COLOURS)))
    marks = dict(zip(dict.fromkeys(kind for _, _, kind in kinds.values()), itertools.cycle(MARKS)))
    with figure_panels(
        path,
        len(networks),
        (2.6, 2.8),
        title="Peak memory and time of a training step, as multiples of those with stored activations",
    ) as panels:
        for axes, network in zip(panels, networks, strict=True):
            own = [row for row in rows if row["network"] == network and row.get("time_to_stored") is not None]
            for row in own:
                point, (base, _, kind) = (row["memory_to_stored"], row["time_to_stored"]), kinds[row["method"]]
                hollow = {"markerfacecolor": "none", "markeredgewidth": 1.5}  # points may lie on one another
                axes.plot(*point, marks[kind], markersize=7, color=colours[base], label=row["method"], **hollow)
            largest = max((row["time_to_stored"] for row in own), default=1)
            axes.set(title=network, xlim=(0, None), ylim=(0, 1.1 * largest))
            axes.set(xlabel="peak memory, × stored", ylabel="time, × stored")
            axes.grid(linewidth=0.5, alpha=0.4)
        add_legend(panels)
