"""Names in a message: the first ones, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first ``most`` names, as "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def quoted(names: Sequence[str]) -> str:
    """The same with each name in quotation marks."""
    return listed([repr(name) for name in names])
