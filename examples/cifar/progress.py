"""A progress bar where rich is installed and somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def with_progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """The items, with a progress bar on the terminal that goes away when they are done."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return items
    console = Console(stderr=True)
    return track(items, label, total, console=console, transient=True, disable=not sys.stderr.isatty())
