"""The plot of ``bench peers``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from momentumnet.bench.reporting.plots import COLOURS, add_legend, figure_panels
from momentumnet.bench.reporting.results import Row

# Errors of 0 and those that are not finite are drawn at the edges of a logarithmic axis, which say so.
SMALLEST_ERROR, LARGEST_ERROR = 1e-8, 1e2
TICKS = {
    SMALLEST_ERROR: "0",
    **{10.0**power: f"$10^{{{power}}}$" for power in (-6, -4, -2, 0)},
    LARGEST_ERROR: "≥ 100, or\nnot finite",
}
BROAD, FINE = 5.0, 1.5
CLOSE = 0.1  # of a power of ten
TITLE = (
    "Error of the gradient against that of stored activations; where lines lie on one another, the lower one is broad"
)

Line = list[tuple[int, float]]


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """Draws the gradient error against depth, a panel for each gamma and one for couplings that have none."""
    gammas = sorted({row["gamma"] for row in rows if row["gamma"] is not None}, reverse=True)
    cases: list[float | None] = [*gammas, *([None] if any(row["gamma"] is None for row in rows) else [])]
    peers = dict.fromkeys(row["peer"] for row in rows)
    colours = dict(zip(peers, itertools.cycle((*COLOURS[2:], *COLOURS[:2]))))
    with figure_panels(path, len(cases), (2.6, 3.2), title=TITLE) as panels:
        for axes, gamma in zip(panels, cases, strict=True):
            lines = _lines([row for row in rows if row["gamma"] == gamma])
            for (peer, points), width in zip(lines.items(), _widths(list(lines.values())), strict=True):
                colour = colours[peer]
                axes.plot(*zip(*points, strict=True), "o-", markersize=3.5, linewidth=width, color=colour, label=peer)
            axes.set(title="additive" if gamma is None else f"gamma {gamma:g}", xlabel="number of layers", yscale="log")
            axes.set_ylim(SMALLEST_ERROR / 2, LARGEST_ERROR * 2)
            axes.set_yticks(list(TICKS), list(TICKS.values()) if axes is panels[0] else [""] * len(TICKS))
            axes.minorticks_off()
            axes.grid(axis="y", linewidth=0.5, alpha=0.4)
        panels[0].set_ylabel("relative error of the gradient (L2)")
        add_legend(panels)


def _lines(rows: Sequence[Row]) -> dict[str, Line]:
    """The points of each peer that came to an error."""
    found: dict[str, Line] = {}
    for row in rows:
        if "plain_float64_error" in row:
            found.setdefault(row["peer"], []).append((row["depth"], _drawn_error(row["gradient_error"])))
    return found


def _drawn_error(error: float | None) -> float:
    return LARGEST_ERROR if error is None else min(max(error, SMALLEST_ERROR), LARGEST_ERROR)


def _widths(lines: Sequence[Line]) -> list[float]:
    """Broad where a later line could not be told apart, and fine elsewhere."""
    return [
        BROAD if any(_lies_on(later, line) for later in lines[place + 1 :]) else FINE
        for place, line in enumerate(lines)
    ]


def _lies_on(line: Line, other: Line) -> bool:
    there = dict(other)
    return all(depth in there and abs(math.log10(there[depth] / error)) < CLOSE for depth, error in line)
