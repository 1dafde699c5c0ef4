"""A list for tests that count calls, or are to see another one in a recompute: nobody puts back what it holds."""

from __future__ import annotations

from typing import TypeVar

Entry = TypeVar("Entry")


class Tally(list[Entry]):
    """Of a class of its own, and so no container that a recompute leaves as it was."""
