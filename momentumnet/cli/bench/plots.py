"""The plots of the benchmarks."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from momentumnet.cli.bench.results import Row

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; black for the reference.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "oxs^"
MIB = 1024**2
# Errors of 0 and those that are not finite are drawn at the edges of a logarithmic axis.
SMALLEST_ERROR, LARGEST_ERROR = 1e-8, 1e2


COLUMNS = 5


@contextmanager
def _figure(path: Path, count: int, size: tuple[float, float], *, title: str) -> Iterator[Sequence[Any]]:
    """The ``count`` panels of a figure, ``size`` inches each; it is written to ``path`` at the end."""
    columns = min(count, COLUMNS)
    lines = math.ceil(count / columns)
    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = pyplot.subplots(
            lines,
            columns,
            figsize=(size[0] * columns + 1.6, size[1] * lines + 0.4),
            layout="constrained",
            squeeze=False,
        )
        try:
            for axes in panels.flat[count:]:
                axes.set_axis_off()
            yield list(panels.flat[:count])
            figure.suptitle(title, fontsize=11)
            figure.savefig(path, dpi=200)
        finally:
            pyplot.close(figure)


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
    with _figure(path, 2, (3.7, 3.4), title=title) as (left, right):
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


def plot_kernel(rows: Sequence[Row], path: Path) -> None:
    """Draws each operation's rate to that of ``x.add_(v)``, a panel for each size, gamma and number of threads."""
    cases = list(dict.fromkeys((row["elements"], row["gamma"], row["threads"]) for row in rows))
    with _figure(path, len(cases), (2.6, 2.8), title="Bandwidth of the momentum step") as panels:
        for index, (axes, (elements, gamma, threads)) in enumerate(zip(panels, cases, strict=True)):
            case = (elements, gamma, threads)
            own = [row for row in rows if (row["elements"], row["gamma"], row["threads"]) == case]
            _bars(axes, {row["operation"]: row["rate_to_add"] for row in own}, named=index % COLUMNS == 0)
            axes.axvline(1, color="grey", linewidth=1, linestyle="--")
            plural = "" if threads == 1 else "s"
            axes.set_xlabel("rate to x.add_(v)")
            axes.set_title(f"{elements} elements\n{threads} thread{plural}, gamma {gamma}", fontsize=9)


def _bars(axes: Any, values: Mapping[str, float], *, named: bool) -> None:
    names = list(values)
    axes.barh(range(len(names)), list(values.values()), color=COLOURS[2])
    axes.set_yticks(range(len(names)), names if named else [""] * len(names))
    axes.invert_yaxis()


def plot_step(rows: Sequence[Row], path: Path) -> None:
    """Draws peak memory and time of a step as multiples of stored activations, a panel for each network.

    A method has its colour, each way to convert at one gamma its mark.
    """
    networks = list(dict.fromkeys(row["network"] for row in rows))
    kinds = {row["method"]: row["method"].replace(" float", ", float").partition(", ") for row in rows}
    colours = dict(zip(dict.fromkeys(base for base, _, _ in kinds.values()), itertools.cycle(COLOURS)))
    marks = dict(zip(dict.fromkeys(kind for _, _, kind in kinds.values()), itertools.cycle(MARKS)))
    with _figure(path, len(networks), (2.6, 2.8), title="One training step") as panels:
        for axes, network in zip(panels, networks, strict=True):
            own = [row for row in rows if row["network"] == network and row.get("time_to_stored") is not None]
            for row in own:
                point, (base, _, kind) = (row["memory_to_stored"], row["time_to_stored"]), kinds[row["method"]]
                axes.plot(*point, marks[kind], markersize=7, alpha=0.8, color=colours[base], label=row["method"])
            largest = max((row["time_to_stored"] for row in own), default=1)
            axes.set(title=network, xlabel="peak memory ×", ylabel="time ×", xlim=(0, None), ylim=(0, 1.1 * largest))
            axes.grid(linewidth=0.5, alpha=0.4)
        _legend(panels)


def plot_peers(rows: Sequence[Row], path: Path) -> None:
    """Draws the gradient error against depth, a panel for each gamma and one for couplings that have none."""
    gammas = sorted({row["gamma"] for row in rows if row["gamma"] is not None}, reverse=True)
    cases: list[float | None] = [*gammas, *([None] if any(row["gamma"] is None for row in rows) else [])]
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    colours = dict(zip(peers, itertools.cycle((*COLOURS[2:], *COLOURS[:2]))))
    with _figure(path, len(cases), (2.6, 3.2), title="Error of the gradient, by depth") as panels:
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
        _legend(panels)


def _drawn_error(error: float | None) -> float:
    return LARGEST_ERROR if error is None else min(max(error, SMALLEST_ERROR), LARGEST_ERROR)


def plot_accuracies(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], path: Path, *, title: str, x: str
) -> None:
    """Draws test accuracies (%) of several seeds as means, with their standard deviations as bars.

    Args:
        panels: By panel, by line and by place on the x axis, the accuracies.
        path: Where the PNG goes.
        title: Title of the figure.
        x: What the x axis is.
    """
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    with _figure(path, max(1, len(panels)), (3.7, 3.4), title=title) as drawn:
        for axes, (heading, lines) in zip(drawn, panels.items(), strict=False):  # without rows an empty panel
            for name, points in lines.items():
                places = sorted(points)
                means = [statistics.mean(points[place]) for place in places]
                bars = [statistics.stdev(own) if len(own) > 1 else 0 for own in (points[place] for place in places)]
                axes.errorbar(
                    places, means, bars, marker="o", markersize=3.5, capsize=2, color=colours[name], label=name
                )
            axes.set(title=heading, xlabel=x, ylabel="test accuracy, %")
            axes.grid(linewidth=0.5, alpha=0.4)
        _legend(drawn)


def _legend(panels: Sequence[Any]) -> None:
    """One legend for all panels, beside them."""
    labels = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].figure.legend(labels.values(), labels, fontsize=8, loc="outside right upper", frameon=False)
