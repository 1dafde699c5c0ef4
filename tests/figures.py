"""Figures that a plot has drawn, to be looked at before they are closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib import pyplot


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[pyplot.Figure]]:
    """The figures that were drawn."""
    figures: list[pyplot.Figure] = []
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    for figure in figures:
        close(figure)
