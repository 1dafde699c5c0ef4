"""Figures for reports, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
BLACK, VERMILION, BLUE, GREEN = "#000000", "#D55E00", "#0072B2", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
# How activations come to backward.
COLOUR_OF_WAY = {"reversible": GREEN, "checkpointed": ORANGE, "stored": "#999999", "offloaded": SKY}


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


def patches(ways: Iterable[str]) -> list[Patch]:
    """What the colours of `COLOUR_OF_WAY` mean, for a legend."""
    from matplotlib.patches import Patch

    return [Patch(color=COLOUR_OF_WAY[way], label=way) for way in dict.fromkeys(ways)]
