"""A progress bar for loops that take minutes, where the terminal and the installed packages allow one."""

from __future__ import annotations

from collections.abc import Iterable


def steps_with_progress(count: int, description: str, *, progress: bool) -> Iterable[int]:
    """``range(count)``, with a progress bar on terminals where rich is installed and ``progress`` asks for one."""
    if not progress:
        return range(count)
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return range(count)
    console = Console(stderr=True)
    return track(range(count), description=description, console=console, disable=not console.is_terminal)
