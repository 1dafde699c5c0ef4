"""The figure of ``bench sharpness``: curvature and sharpness over the trainings; accuracy and curvature against rho."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullLocator

from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.plots import COLOURS, add_legend, draw_means, figure_panels
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.sharpness.curves import over_passes, over_rho

LEAST = 0.01  # below this radius the axis is linear, so that 0 has a place


def plot(rows: Sequence[Row], path: Path, *, rho: float) -> None:
    """Draws four panels for each network.

    Args:
        rows: What the trainings came to.
        path: Where the PNG goes.
        rho: Radius of the trainings whose course is drawn.
    """
    networks = seeds.groups(rows, "model")
    colours = dict(zip(dict.fromkeys(row["method"] for row in rows), itertools.cycle(COLOURS)))
    title = "The loss landscape under SAM; means and standard deviations over the seeds"
    with figure_panels(path, max(4, 4 * len(networks)), (4.2, 3.2), title=title, columns=2) as panels:
        for index, ((model,), own) in enumerate(networks.items()):
            _draw(panels[4 * index : 4 * index + 4], model, own, rho, colours)
        add_legend(panels)


def _draw(panels: Sequence[Any], model: str, rows: Sequence[Row], rho: float, colours: dict[str, str]) -> None:
    top, sharp, accurate, flat = panels
    draw_means(top, over_passes(rows, rho, lambda look: look["eigenvalues"][0]), colours)
    draw_means(sharp, over_passes(rows, rho, lambda look: look["sharpness"]), colours)
    draw_means(accurate, over_rho(rows, lambda row: row["acc_final"]), colours)
    draw_means(flat, over_rho(rows, lambda row: row["measurements"][-1]["eigenvalues"][0]), colours)
    top.set(ylabel="largest eigenvalue of the Hessian", yscale="log")
    sharp.set(ylabel="sharpness", yscale="log")
    accurate.set(ylabel="test accuracy, %")
    flat.set(ylabel="largest eigenvalue at the end")
    for axes in (top, sharp):
        axes.set(title=f"{model}, over the training", xlabel="passes over the training images")
    for axes in (accurate, flat):
        axes.set(title=f"{model}, SAM by its radius", xlabel="rho")
        axes.set_xscale("symlog", linthresh=LEAST)
        places = sorted({row["rho"] for row in rows if row["rho"] is not None})
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        if places:
            axes.set_xlim(-LEAST / 5, 1.2 * max(*places, LEAST))
