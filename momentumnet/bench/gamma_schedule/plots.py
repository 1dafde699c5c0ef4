"""The plot of ``bench gamma-schedule``: score and memory against the final value, a line for each length."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from momentumnet.bench.gamma_schedule.tables import in_words, score_name
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.plots import COLOURS, add_legend, draw_seeds, figure_panels
from momentumnet.bench.reporting.results import Row

Lines = dict[str, dict[float, list[float]]]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws scores above, peak memory below, a column for each network and rule.

    Args:
        rows: What was measured.
        path: Where the PNG goes.
    """
    groups = seeds.groups(seeds.done(rows), "model", "method")
    title = "Score, and highest peak of a step, by final gamma or beta"
    count = max(1, len(groups))
    with figure_panels(path, 2 * count, (3.4, 3.0), title=title, columns=count) as panels:
        for place, ((model, method), own) in enumerate(groups.items()):
            drawn = ((score_name(model), "score", 1), ("peak memory, MiB", "most_peak_bytes", 2**20))
            for line, (name, key, unit) in enumerate(drawn):
                axes = panels[line * count + place]
                for number, (length, points) in enumerate(_lines(own, key, unit).items()):
                    draw_seeds(axes, points, COLOURS[number % len(COLOURS)], in_words(length))
                axes.set(title=f"{model}, {method}", xlabel="final value", ylabel=name)
                axes.grid(linewidth=0.5, alpha=0.4)
        add_legend(panels)


def _lines(rows: Sequence[Row], key: str, unit: int) -> Lines:
    """By length, from short to long, the values by final value.

    A final value that has one length only is the start: the same training for all lengths.
    """
    groups = seeds.groups(rows, "length", "final")
    lengths = sorted({length for length, _ in groups}, key=Fraction)
    found: Lines = {length: {} for length in lengths}
    for (length, final), own in groups.items():
        values = [row[key] / unit for row in own]
        is_start = {other for other, same in groups if same == final} == {"0"}
        for line in lengths if is_start else [length]:
            found[line][float(Fraction(final))] = values
    return found
