"""What the plots of the benchmarks share: figures of panels, colours, legends, and accuracies of several seeds."""

from __future__ import annotations

import io
import itertools
import math
import statistics
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from momentumnet.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from momentumnet.files import whole_file

COLOURS = (BLACK, VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)  # black for the reference
COLUMNS = 5  # of panels at most
# Inches: beside the panels, above them, around a legend, and of a letter of a title.
LEGEND_WIDTH, TITLE_HEIGHT, LEGEND_PAD, TITLE_LETTER = 1.6, 0.4, 0.2, 0.085
TITLE_SIZE = 11


@contextmanager
def figure_panels(
    path: Path, count: int, size: tuple[float, float], *, title: str, columns: int = COLUMNS
) -> Iterator[Sequence[Any]]:
    """The ``count`` panels of a figure, ``size`` inches each, ``columns`` in a line; written to ``path`` at the end."""
    columns = min(count, columns)
    lines = math.ceil(count / columns)
    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = pyplot.subplots(
            lines,
            columns,
            figsize=(size[0] * columns + LEGEND_WIDTH, size[1] * lines + TITLE_HEIGHT),
            layout="constrained",
            squeeze=False,
        )
        try:
            for axes in panels.flat[count:]:
                axes.set_axis_off()
            yield list(panels.flat[:count])
            _make_room(figure)
            lines_of_title = textwrap.fill(title, int(size[0] * columns / TITLE_LETTER))  # above the panels alone
            figure.suptitle(lines_of_title, x=0.01, horizontalalignment="left", fontsize=TITLE_SIZE)
            image = io.BytesIO()
            figure.savefig(image, dpi=200, format=path.suffix[1:])
            whole_file.write(path, lambda sink: sink.write(image.getvalue()))
        finally:
            pyplot.close(figure)


def _make_room(figure: Any) -> None:
    """Makes a figure wider and higher where its legend would take its place from the panels."""
    for legend in figure.legends:
        box = legend.get_window_extent(figure.canvas.get_renderer())
        wide, high = box.width / figure.dpi + LEGEND_PAD, box.height / figure.dpi + LEGEND_PAD
        figure.set_figwidth(figure.get_figwidth() + max(0.0, wide - LEGEND_WIDTH))
        figure.set_figheight(max(figure.get_figheight(), high))


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
    plot_seeds(panels, path, title=title, labels=dict.fromkeys(panels, (x, "test accuracy, %")))


def plot_seeds(
    panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    path: Path,
    *,
    title: str,
    labels: Mapping[str, tuple[str, str]],
    from_zero: Collection[str] = (),
) -> None:
    """As `plot_accuracies`, of whatever the ``labels`` of each panel's x and y axis say.

    Args:
        panels: As there.
        path: Where the PNG goes.
        title: Title of the figure.
        labels: By panel, what the x axis is and what the y axis is.
        from_zero: Panels whose y axis begins at zero.
    """
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    with figure_panels(path, max(1, len(panels)), (3.7, 3.4), title=title) as drawn:
        for axes, (heading, lines) in zip(drawn, panels.items(), strict=False):  # without rows an empty panel
            draw_means(axes, lines, colours)
            x, y = labels[heading]
            axes.set(title=heading, xlabel=x, ylabel=y)
            if heading in from_zero:
                axes.set_ylim(bottom=0)
        add_legend(drawn)


def draw_means(axes: Any, lines: Mapping[str, Mapping[float, Sequence[float]]], colours: Mapping[str, str]) -> None:
    """Draws values of several seeds, by line and by place on the x axis, as `draw_seeds` does."""
    for name, points in lines.items():
        draw_seeds(axes, points, colours[name], name)
    axes.grid(linewidth=0.5, alpha=0.4)


def draw_seeds(axes: Any, points: Mapping[float, Sequence[float]], colour: str, label: str) -> None:
    """Draws the values of several seeds, by their place on the x axis, as means with their deviations as bars."""
    places = sorted(points)
    means = [statistics.mean(points[place]) for place in places]
    bars = [statistics.stdev(own) if len(own) > 1 else 0 for own in (points[place] for place in places)]
    axes.errorbar(places, means, bars, marker="o", markersize=3.5, capsize=2, color=colour, label=label)


def add_legend(panels: Sequence[Any]) -> None:
    """One legend for all panels, beside them."""
    labels = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0].figure.legend(labels.values(), labels, fontsize=8, loc="outside right upper", frameon=False)
