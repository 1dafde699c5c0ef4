"""Checks of options: what several functions demand of a number or a word."""

from __future__ import annotations

import math
from collections.abc import Collection


def positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError unless the value is one of those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def whole(name: str, value: int) -> None:
    """Raises ValueError unless the value is a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
