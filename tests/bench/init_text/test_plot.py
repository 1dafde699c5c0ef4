from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from momentumnet.bench.init_text.plot import plot


def row(method: str, losses: list[float], **changes: Any) -> dict[str, Any]:
    plain = {"part": "train", "network": "post-norm", "method": method, "init_for": None, "optimizer": "adam"}
    course = [[4 * place, None if place == 0 else 9.0, loss] for place, loss in enumerate(losses)]
    return {**plain, "rate": 0.01, "seed": 0, "course": course, **changes}


def test_lines_are_means_of_the_trainings_with_adam_that_came_to_their_end(
    tmp_path: Path, drawn: list[pyplot.Figure]
) -> None:
    rows = [
        row("plain", [5.0, 4.0, 3.0]),
        row("plain", [5.5, 2.0, 1.0], seed=1),
        row("plain", [5.0], seed=2, error="diverged"),
        row("plain", [8.0, 8.0, 8.0], optimizer="sgd"),
        row("gradinit", [7.0, 7.0, 7.0], init_for="sgd"),
        row("gradinit", [6.0, 3.0, 2.0], init_for="adam"),
        row("tfixup", [4.0, 4.0, 3.5], network="norm-free"),
        row("plain", [1.0, 1.0, 1.0], part="search"),
    ]
    plot(rows, 3.25, tmp_path / "curves.png")
    (figure,) = drawn
    (axes,) = figure.axes
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    steps = [0, 4, 8]
    named = {label: line for label, line in found.items() if not label.startswith("_")}
    assert named.pop("frequencies of characters")[1] == [3.25, 3.25]
    assert named == {
        "plain": (steps, [5.25, 3.0, 2.0]),
        "gradinit": (steps, [6.0, 3.0, 2.0]),
        "tfixup (no norms)": (steps, [4.0, 4.0, 3.5]),
    }
