"""Moments of a training step, and the one of the most bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PHASES = ("forward", "loss", "recompute", "backward")


@dataclass(slots=True)  # not frozen, which takes longer: a search makes hundreds of thousands
class Moment:
    """The most bytes at once while a unit runs; ``phase`` is one of `PHASES`.

    The loss counts as the unit behind the last.
    """

    phase: str
    unit: int
    bytes: int


def peak_of(moments: Sequence[Moment]) -> Moment:
    """The moment of the most bytes."""
    return max(moments, key=lambda moment: moment.bytes)
