"""The plots of ``bench paper``: flows drawn again from the weights in the rows, and linear maps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from momentumnet.bench.paper.blocks import TanhBlock, flow
from momentumnet.bench.paper.crossing import grid
from momentumnet.bench.paper.flows import DRAWN, FlowExperiment
from momentumnet.bench.paper.linear_fits import EPSILONS, LinearMaps
from momentumnet.bench.paper.linear_maps import limit_factor, lowest_factor
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.plots import COLOURS, COLUMNS, add_legend, figure_panels
from momentumnet.bench.reporting.results import Row

PATHS = 9  # trajectories of a figure
SHOWN_POINTS = 150  # in each ring


def plot(experiment: FlowExperiment | LinearMaps, rows: Sequence[Row], path: Path) -> None:
    """Draws the figure of an experiment; flows are those of the first seed that came to its end.

    Args:
        experiment: What was run.
        rows: What it came to.
        path: Where the PNG goes.
    """
    if isinstance(experiment, LinearMaps):
        _plot_maps(rows, path)
        return
    first = {model: own[0] for (model,), own in seeds.groups(seeds.done(rows), "model").items()}
    if experiment.dimension == 1:
        _plot_paths(experiment, first, path)
    else:
        _plot_frames(experiment, first, path)


def _plot_paths(experiment: FlowExperiment, first: dict[str, Row], path: Path) -> None:
    x = grid(PATHS)
    with figure_panels(
        path, max(1, len(first)), (3.7, 3.4), title="Where the layers take nine points of the line, wanted: x -> -x³"
    ) as panels:
        for axes, (model, row) in zip(panels, first.items(), strict=False):
            block = TanhBlock.from_values(row["weights"])
            places = flow(block, x, experiment.depth, experiment.gamma_of(model))[:, 0, :, 0]
            for start, line in zip(x[0, :, 0], places.T, strict=True):
                label = "starts above 0" if start > 0 else "starts below 0"
                axes.plot(line, marker="o", markersize=2.5, color=COLOURS[1 if start > 0 else 2], label=label)
            axes.plot([experiment.depth] * PATHS, -(x[0, :, 0] ** 3), "x", color=COLOURS[0], label="wanted")
            axes.set(title=f"{model}, seed {row['seed']}", xlabel="layers passed", ylabel="place on the line")
            axes.set_xticks(range(0, experiment.depth + 1, 3))
        add_legend(panels)


def _plot_frames(experiment: FlowExperiment, first: dict[str, Row], path: Path) -> None:
    x, wanted = experiment.sample(torch.Generator().manual_seed(DRAWN), SHOWN_POINTS)
    layers = [round(place) for place in np.linspace(0, experiment.depth, COLUMNS)]
    title = "Where the layers take the points of nested rings"
    with figure_panels(path, max(1, len(first)) * COLUMNS, (2.3, 2.3), title=title) as panels:
        for line, (model, row) in enumerate(first.items()):
            frames = flow(TanhBlock.from_values(row["weights"]), x[None], experiment.depth, experiment.gamma_of(model))
            for axes, layer in zip(panels[line * COLUMNS :], layers, strict=False):
                for group in (0, 1):
                    own = frames[layer, 0, wanted == group]
                    axes.scatter(*own.T, s=2, color=COLOURS[1 + group], label=f"class {group + 1}")
                axes.set_title(f"{model}\nseed {row['seed']}, layer {layer}", fontsize=9)
                axes.set(xlabel="first coordinate")
            panels[line * COLUMNS].set(ylabel="second coordinate")
        add_legend(panels)


def _plot_maps(rows: Sequence[Row], path: Path) -> None:
    with figure_panels(path, 2, (3.9, 3.6), title="Maps of the line by layers that share one number") as (left, right):
        for (model, epsilon), colour in zip(EPSILONS.items(), COLOURS, strict=False):
            mu = np.linspace(-60, 3, 2000)
            left.plot(mu, [limit_factor(value, epsilon).real for value in mu], color=colour, label=model)
            own = [row for row in rows if row["model"] == model and len(row["reached"]) == 1]
            reached = {float(name): _mean(same) for (name,), same in seeds.groups(own, "target").items()}
            right.plot(list(reached), list(reached.values()), "o", markersize=4, color=colour, label=model)
            axis = np.linspace(-1.25, 1.05, 400)
            right.plot(axis, np.maximum(axis, lowest_factor(epsilon)), linewidth=1, color=colour)
        left.set(
            xlabel="Theta",
            ylabel="factor of the limit, x(1) / x(0)",
            ylim=(-1.1, 3),
            title="theory, infinitely many layers",
        )
        right.set(
            xlabel="factor that is wanted", ylabel="factor that is reached", title="fits (points), theory (lines)"
        )
        for axes in (left, right):
            axes.grid(linewidth=0.5, alpha=0.4)
        add_legend((left, right))


def _mean(rows: Sequence[Row]) -> Any:
    return statistics.mean(row["reached"][0][0] for row in rows)
