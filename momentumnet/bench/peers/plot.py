"""The plot of ``bench peers``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from momentumnet.bench.plots import COLOURS, add_legend, figure_panels
from momentumnet.bench.results import Row

# Errors of 0 and those that are not finite are drawn at the edges of a logarithmic axis.
SMALLEST_ERROR, LARGEST_ERROR = 1e-8, 1e2


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """Draws the gradient error against depth, a panel for each gamma and one for couplings that have none."""
    gammas = sorted({row["gamma"] for row in rows if row["gamma"] is not None}, reverse=True)
    cases: list[float | None] = [*gammas, *([None] if any(row["gamma"] is None for row in rows) else [])]
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colours = dict(zip(peers, itertools.cycle((*COLOURS[2:], *COLOURS[:2]))))
    with figure_panels(path, len(cases), (2.6, 3.2), title="Error of the gradient, by depth") as panels:
        for axes, gamma in zip(panels, cases, strict=True):
            for peer in peers:
                own = [
                    row
                    for row in rows
                    if row["peer"] == peer and row["gamma"] == gamma and "plain_float64_error" in row
                ]
                points = [(row["depth"], _drawn_error(row["gradient_error"])) for row in own]
                if points:
                    # Lines that lie on one another: the first peer's is broad and shows below the others.
                    width = 5 if peer == peers[0] else 1.5
                    axes.plot(
                        *zip(*points, strict=True),
                        "o-",
                        markersize=3.5,
                        linewidth=width,
                        color=colours[peer],
                        label=peer,
                    )
            axes.set(title="additive" if gamma is None else f"gamma {gamma:g}", xlabel="depth", yscale="log")
            axes.set_ylim(SMALLEST_ERROR / 2, LARGEST_ERROR * 2)
            axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        panels[0].set_ylabel("relative error (0 at the bottom)")
        add_legend(panels)


def _drawn_error(error: float | None) -> float:
    return LARGEST_ERROR if error is None else min(max(error, SMALLEST_ERROR), LARGEST_ERROR)
