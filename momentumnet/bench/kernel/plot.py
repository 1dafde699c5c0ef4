"""The plot of ``bench kernel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.reporting.plots import COLOURS, COLUMNS, figure_panels
from momentumnet.bench.reporting.results import Row


def plot_kernel(rows: Sequence[Row], path: Path) -> None:
    """Draws each operation's rate to that of ``x.add_(v)``, a panel for each size, gamma and number of threads."""
    cases = list(dict.fromkeys((row["elements"], row["gamma"], row["threads"]) for row in rows))
    with figure_panels(
        path, len(cases), (2.6, 2.8), title="Bytes per second of the momentum step, as multiples of those of x.add_(v)"
    ) as panels:
        for index, (axes, (elements, gamma, threads)) in enumerate(zip(panels, cases, strict=True)):
            case = (elements, gamma, threads)
            own = [row for row in rows if (row["elements"], row["gamma"], row["threads"]) == case]
            _bars(axes, {row["operation"]: row["rate_to_add"] for row in own}, named=index % COLUMNS == 0)
            axes.axvline(1, color="grey", linewidth=1, linestyle="--")
            plural = "" if threads == 1 else "s"
            axes.set_xlabel("rate, × x.add_(v)")
            axes.set_title(f"{elements} elements\n{threads} thread{plural}, gamma {gamma}", fontsize=9)


def _bars(axes: Any, values: Mapping[str, float], *, named: bool) -> None:
    names = list(values)
    axes.barh(range(len(names)), list(values.values()), color=COLOURS[2])
    axes.set_yticks(range(len(names)), names if named else [""] * len(names))
    axes.invert_yaxis()
