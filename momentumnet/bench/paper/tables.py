"""The tables of ``bench paper``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from momentumnet.bench.paper.linear_fits import ARRIVED, EPSILONS, TARGETS
from momentumnet.bench.paper.linear_maps import lowest_factor
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.tables import Table

# By experiment: title, and the figures of its rows with heading and form.
FLOWS: dict[str, tuple[str, Mapping[str, tuple[str, str]]]] = {
    "crossing": (
        "Trajectories that cross: x -> -x**3 on the line",
        {"error_on_grid": ("mean squared error", ".4f"), "turned": ("pairs x, -x that cross, %", ".0f")},
    ),
    "rings": ("Two nested rings", {"accuracy": ("test accuracy, %", ".2f")}),
    "point-clouds": ("Four nested rings in two classes", {"accuracy": ("test accuracy, %", ".2f")}),
}


def table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    """The table of one experiment."""
    return _linear_table(rows, settings) if settings["experiment"] == "linear" else _flow_table(rows, settings)


def _flow_table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    title, figures = FLOWS[settings["experiment"]]
    figures = {**figures, "steepness": ("steepness", ".2f")}
    cells = []
    for (model,), own in seeds.groups(rows, "model").items():
        done = seeds.done(own)
        texts = [
            seeds.mean([row[key] for row in done], form) if done else "fails" for key, (_, form) in figures.items()
        ]
        cells.append((model, *texts, seeds.seeds(own)))
    columns = ("model", *(heading for heading, _ in figures.values()), "seeds")
    notes = [
        "Mean and standard deviation over the seeds. steepness: largest singular value of the residual function's "
        "derivative where the flow comes by; below 1 everywhere, trajectories of a ResNet cannot cross.",
        *_described(settings),
        *seeds.failures(rows, lambda row: str(row["model"])),
    ]
    return Table(title, columns, cells, notes=notes, left=1)


def _linear_table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    found = seeds.groups(rows, "target", "model")
    cells = []
    for name, matrix in TARGETS.items():
        eigenvalues = ", ".join(f"{value:.3g}" for value in np.linalg.eigvals(np.array(matrix)))
        cells.append((name, eigenvalues, *(_reached(found.get((name, model), [])) for model in EPSILONS)))
    lowest = ", ".join(
        f"{lowest_factor(epsilon, settings['depth']):.6f} for {model} (limit {lowest_factor(epsilon):.6f})"
        for model, epsilon in EPSILONS.items()
    )
    notes = [
        "yes or no: whether the map is represented, as its eigenvalues say: each real one below the least factor must "
        f"have an even multiplicity. Least factors: {lowest}. Then the smallest Frobenius distance that a fit came to, "
        f"mean and standard deviation over the seeds, and in how many of them one came below {ARRIVED:g}.",
        *_described(settings),
    ]
    return Table("Linear maps of layers that share one matrix", ("map", "eigenvalues", *EPSILONS), cells, notes=notes)


def _reached(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    predicted = "yes" if rows[0]["representable"] else "no"
    arrived = sum(row["arrived"] > 0 for row in rows)
    return f"{predicted}: {seeds.mean([row['distance'] for row in rows], '.3f')}, {arrived} of {len(rows)}"


def _described(settings: dict[str, Any]) -> list[str]:
    """Every hyper-parameter, in one line."""
    shown = {name: value for name, value in settings.items() if name not in ("experiment", "targets")}
    return ["; ".join(f"{name}: {_plain(value)}" for name, value in shown.items()) + "."]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{own:g} ({name})" for name, own in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
