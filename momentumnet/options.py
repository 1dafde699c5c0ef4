"""Checks of options: what several functions demand of a switch, a number or a word."""

from __future__ import annotations

import math
from collections.abc import Collection


def true_or_false(**options: bool) -> None:
    """Raises ValueError unless each of the options is True or False: text, such as "no", would count as true."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is a finite number above zero."""
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def is_finite(value: object) -> bool:
    """Whether the value is a finite number, of any kind that Python takes for one; True and False are none."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):  # text; an array or a tensor of several; 10**400
        return False


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError unless the value is one of those that are known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def whole(name: str, value: int, *, least: int = 1) -> None:
    """Raises ValueError unless the value is a whole number, not below the least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
