"""Completion in shells, by argcomplete where it is installed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

ASKED = "_ARGCOMPLETE"  # in the environment, when a shell asks what could stand there


def answer(program: Callable[[], argparse.ArgumentParser]) -> None:
    """Answers the shell and ends the process, if a shell has asked.

    Args:
        program: Makes the parser of the whole command line.
    """
    if ASKED not in os.environ:
        return
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    argcomplete.autocomplete(program())


def offer(argument: argparse.Action, values: Callable[[], list[str]]) -> None:
    """Has a shell offer ``values``, which are asked for then, where an argument stands."""
    argument.completer = lambda **_: values()  # type: ignore[attr-defined]
