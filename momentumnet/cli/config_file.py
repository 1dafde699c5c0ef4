"""Options from a file: ``--config FILE.toml``, put in front of those of the command line, which therefore win."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
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
    options = [FromFile(_word(path, name, value)) for name, value in _read(Path(path)).items()]
    return [arguments[0], *options, *arguments[1:]]


def as_switches(words: Sequence[str], known: Mapping[str, argparse.Action]) -> list[str]:
    """The words with those of a file that set a switch as the command line has them: ``--compare``, or nothing.

    ``augment = false`` sets none, and is refused as any other value that ``--augment`` does not take.

    Raises:
        argparse.ArgumentError: A switch is given another value than those, or one on the command line.
    """
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        action = known.get(flag)
        if action is None or action.nargs != 0 or not equals:
            found.append(word)
        elif not isinstance(word, FromFile):
            raise argparse.ArgumentError(
                action, f"a switch takes no value, and {value!r} is given; write {flag}, or leave it out"
            )
        elif value == "true":
            found.append(FromFile(flag))
        elif value != "false":
            raise argparse.ArgumentError(action, f"{value!r} is neither true nor false: in a file {flag[2:]} = true")
    return found


def _named(arguments: Sequence[str]) -> str | None:
    found = [word.partition("=")[2] for word in arguments if word.startswith(f"{FLAG}=")]
    found += [path for word, path in pairwise(arguments) if word == FLAG]
    if len(found) > 1:
        raise UsageError(f"{FLAG} is given {len(found)} times; one file holds all options")
    return found[0] if found else None


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


def _word(path: str, name: str, value: Any) -> str:
    """An option as it would stand on the command line: ``batch-size = 32``, ``compare = true``."""
    flag = f"--{name.replace('_', '-')}"
    if flag == FLAG:
        raise UsageError(f"{path} names a further {FLAG}; one file holds all options")
    if isinstance(value, bool):  # which only a switch takes: see `as_switches`
        return f"{flag}={value}".lower()
    if isinstance(value, (str, int, float)):
        return f"{flag}={value}"
    raise UsageError(f'{path} holds {name} = {value!r}; an option has a text, a number or true: model = "resnet18"')
