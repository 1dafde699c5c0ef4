"""Figures for reports, where matplotlib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(caller: str, width: float, height: float) -> Figure:
    """An empty figure that no window shows.

    Args:
        caller: The function that draws, for the error message.
        width: In inches.
        height: In inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{caller} needs matplotlib: pip install momentumnet[cli]") from error
    return Figure(figsize=(width, height), layout="constrained")
