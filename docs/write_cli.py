"""Writes docs/cli.md, the reference of the command line, from the program's own options.

python docs/write_cli.py           writes the page
python docs/write_cli.py --check   says whether it is what it has to be, for .ci/run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from momentumnet.cli.main import program

PAGE = Path(__file__).with_name("cli.md")
FIRST = "<!-- Written by docs/write_cli.py from the program's own options: change these instead. -->"


def page() -> str:
    """The whole page."""
    parser = program()
    parts = ["# The command line", FIRST, *_epilog(parser), *_commands(parser)]
    return "\n\n".join(parts) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _command(command)
                yield from _commands(command)


def _command(command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## `{command.prog}`"
    if command.description:
        yield " ".join(command.description.split())
    for group in command._action_groups:
        actions = [
            action
            for action in group._group_actions
            if not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
        ]
        if actions:
            rows = [f"| `{_usage(action)}` | {_meaning(command, action)} |" for action in actions]
            yield "\n".join([f"| {group.title} | |", "|---|---|", *rows])
    yield from _epilog(command)


def _usage(action: argparse.Action) -> str:
    values = "|".join(map(str, action.choices)) if action.choices else action.metavar or action.dest.upper()
    if not action.option_strings:
        return str(values) + ("..." if action.nargs in ("+", "*") else "")
    names = ", ".join(action.option_strings)
    return (names if action.nargs == 0 else f"{names} {values}").replace("|", "\\|")


def _meaning(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    return " ".join(((action.help or "") % {**vars(action), "prog": command.prog}).split()).replace("|", "\\|")


def _epilog(parser: argparse.ArgumentParser) -> Iterator[str]:
    if parser.epilog:
        yield f"```\n{parser.epilog.strip()}\n```"


def main() -> int:
    """Writes the page, or compares it; returns the exit status."""
    if sys.argv[1:] == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text() != page():
            print(f"{PAGE} is not what the options are: run python docs/write_cli.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
