"""Options from a file: ``--config FILE.toml``, put in front of those of the command line, which therefore win."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.command_errors import MachineError, UsageError

FLAG = "--config"


class FromFile(str):
    """A word of the command line that the file has brought."""

    __slots__ = ()


def expanded(arguments: Sequence[str]) -> list[str]:
    """The command line with the options of the file that ``--config`` names, right behind the command.

    Args:
        arguments: Without the program's name.

    Raises:
        UsageError: The file cannot be read, or holds something else than options with values.
        MachineError: This version of Python reads no TOML.
    """
    path = _named(arguments)
    if path is None:
        return list(arguments)
    options = [FromFile(word) for name, value in _read(Path(path)).items() for word in _words(path, name, value)]
    return [arguments[0], *options, *arguments[1:]]


def _named(arguments: Sequence[str]) -> str | None:
    for place, word in enumerate(arguments):
        if word.startswith(f"{FLAG}="):
            return word.partition("=")[2]
        if word == FLAG and place + 1 < len(arguments):
            return arguments[place + 1]
    return None


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        raise MachineError(f"{FLAG} needs Python 3.11 or newer, which reads TOML; give the options on the command line")
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{FLAG} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{FLAG} {path} is not TOML: {error}") from error


def _words(path: str, name: str, value: Any) -> list[str]:
    """An option as it would stand on the command line: ``batch-size = 32``, ``compare = true``."""
    flag = f"--{name.replace('_', '-')}"
    if flag == FLAG:
        raise UsageError(f"{path} names a further {FLAG}; one file holds all options")
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, (str, int, float)):
        return [f"{flag}={value}"]
    raise UsageError(f'{path} holds {name} = {value!r}; an option has a text, a number or true: model = "resnet18"')
