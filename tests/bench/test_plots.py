from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.transforms import Bbox

from momentumnet.bench.depth.plot import plot_depth
from momentumnet.bench.peers.plot import BROAD, FINE, _drawn_error, plot_peers
from momentumnet.bench.reporting.plots import plot_accuracies
from momentumnet.bench.step.plot import plot_step


def test_errors_of_zero_and_without_end_stay_on_the_axis() -> None:
    assert _drawn_error(0.0) == 1e-8
    assert _drawn_error(1e-3) == 1e-3
    assert _drawn_error(None) == _drawn_error(1e30) == 1e2


def test_accuracies_are_drawn_with_means_and_deviations(tmp_path: Path, drawn: list[pyplot.Figure]) -> None:
    accuracies = {"a": {40.0: [50.0, 60.0, 82.0], 0.0: [90.0, 92.0]}, "b": {0.0: [70.0]}}
    plot_accuracies({"resnet8": accuracies}, tmp_path / "noise.png", title="noise", x="wrong labels, %")
    (figure,) = drawn
    first, second = figure.axes[0].containers
    line, _, (bars,) = first
    assert first.get_label() == "a"
    assert [list(axis) for axis in line.get_data()] == [[0, 40], [91, 64]]  # in the order of the x axis
    halves = [(end[1][1] - end[0][1]) / 2 for end in bars.get_segments()]
    assert halves == pytest.approx([statistics.stdev(accuracies["a"][noise]) for noise in (0, 40)])
    line, _, (bars,) = second
    assert [list(axis) for axis in line.get_data()] == [[0], [70]]
    assert [end[1][1] - end[0][1] for end in bars.get_segments()] == [0]


def peer_row(peer: str, depth: int, error: float | None, gamma: float | None = None) -> dict[str, Any]:
    return {"peer": peer, "gamma": gamma, "depth": depth, "gradient_error": error, "plain_float64_error": 1e-7}


def test_a_line_below_another_is_broad(tmp_path: Path, drawn: list[pyplot.Figure]) -> None:
    rows = [peer_row(peer, depth, 1e-7 * depth) for peer in ("below", "above") for depth in (10, 20)]
    rows += [peer_row("elsewhere", depth, 1e-3) for depth in (10, 20)]
    plot_peers(rows, tmp_path / "peers.png")
    (axes,) = drawn[0].axes
    assert {line.get_label(): line.get_linewidth() for line in axes.lines} == {
        "below": BROAD,
        "above": FINE,
        "elsewhere": FINE,
    }
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0] == "0"
    assert "not finite" in labels[-1]
    assert axes.get_xlabel() == "number of layers"


def test_depth_says_quantities_units_and_where_lines_end(tmp_path: Path, drawn: list[pyplot.Figure]) -> None:
    rows = [
        {"depth": depth, "method": "stored", "peak_bytes": depth * 2**20, "step_seconds": 0.1 * depth or None}
        for depth in (8, 16)
    ]
    rows.append({"depth": 32, "method": "stored", "peak_bytes": None, "step_seconds": None})
    plot_depth(rows, tmp_path / "depth.png", title="a title", budget=12 * 2**20)
    left, right = drawn[0].axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("peak memory of a step, MiB", "time of a step, s")
    assert [*left.texts, *right.texts] == []  # names stand in the legend, where they cross nothing
    (legend,) = drawn[0].legends
    assert [text.get_text().split(",")[0] for text in legend.get_texts()] == ["stored", "budget"]
    assert list(left.lines[0].get_data()[1]) == [8, 16]


@pytest.mark.parametrize("networks", [1, 2, 6])
def test_title_legend_and_panels_do_not_overlap(tmp_path: Path, drawn: list[pyplot.Figure], networks: int) -> None:
    rows = [
        {
            "network": f"network-{network}",
            "method": f"any gamma, planned as momentum 1/8, others kept {method}",
            "memory_to_stored": 0.1 * method,
            "time_to_stored": 1 + 0.1 * method,
        }
        for network in range(networks)
        for method in range(18)
    ]
    plot_step(rows, tmp_path / "step.png")
    (figure,) = drawn
    figure.canvas.draw()  # at the resolution at which boxes are asked for
    (legend,) = figure.legends
    (title,) = figure.texts
    boxes = [legend.get_window_extent(), title.get_window_extent()]
    boxes += [axes.get_tightbbox() for axes in figure.axes if axes.axison]
    assert len(boxes) == 2 + networks
    numbered = itertools.combinations(enumerate(boxes), 2)
    assert [(i, j) for (i, one), (j, other) in numbered if Bbox.intersection(one, other)] == []
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())
