from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from matplotlib import pyplot

from momentumnet.bench.depth.plot import _spread
from momentumnet.bench.peers.plot import _drawn_error
from momentumnet.bench.plots import plot_accuracies


def test_labels_are_moved_apart_in_order() -> None:
    assert _spread([5.0, 1.0, 1.1, 1.05], smallest=0.5) == pytest.approx([5.0, 1.0, 2.0, 1.5])
    assert _spread([1.0, 2.0], smallest=0.5) == [1.0, 2.0]


def test_errors_of_zero_and_without_end_stay_on_the_axis() -> None:
    assert _drawn_error(0.0) == 1e-8
    assert _drawn_error(1e-3) == 1e-3
    assert _drawn_error(None) == _drawn_error(1e30) == 1e2


def test_accuracies_are_drawn_with_means_and_deviations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pyplot.Figure] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    accuracies = {"a": {40.0: [50.0, 60.0, 82.0], 0.0: [90.0, 92.0]}, "b": {0.0: [70.0]}}
    plot_accuracies({"resnet8": accuracies}, tmp_path / "noise.png", title="noise", x="wrong labels, %")
    monkeypatch.undo()
    (figure,) = drawn
    first, second = figure.axes[0].containers
    pyplot.close(figure)
    line, _, (bars,) = first
    assert first.get_label() == "a"
    assert [list(axis) for axis in line.get_data()] == [[0, 40], [91, 64]]  # in the order of the x axis
    halves = [(end[1][1] - end[0][1]) / 2 for end in bars.get_segments()]
    assert halves == pytest.approx([statistics.stdev(accuracies["a"][noise]) for noise in (0, 40)])
    line, _, (bars,) = second
    assert [list(axis) for axis in line.get_data()] == [[0], [70]]
    assert [end[1][1] - end[0][1] for end in bars.get_segments()] == [0]
