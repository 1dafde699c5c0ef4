from __future__ import annotations

import pytest

from momentumnet.cli.bench.plots import _drawn_error, _spread


def test_labels_are_moved_apart_in_order() -> None:
    assert _spread([5.0, 1.0, 1.1, 1.05], smallest=0.5) == pytest.approx([5.0, 1.0, 2.0, 1.5])
    assert _spread([1.0, 2.0], smallest=0.5) == [1.0, 2.0]


def test_errors_of_zero_and_without_end_stay_on_the_axis() -> None:
    assert _drawn_error(0.0) == 1e-8
    assert _drawn_error(1e-3) == 1e-3
    assert _drawn_error(None) == _drawn_error(1e30) == 1e2
