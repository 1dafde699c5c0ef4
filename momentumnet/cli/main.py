"""Entry point of the command line: arguments, exit codes, and what an error looks like."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from momentumnet import __version__
from momentumnet.cli import bench, completion, config_file, doctor, evaluate, export, finetune, inspect, predict
from momentumnet.cli.failures import explain
from momentumnet.command_errors import CommandError, UsageError

MODEL = "--model"  # of commands that have it, a word that stands alone is one
READER_GONE, INTERRUPTED = 141, 130  # as a shell reports a program that SIGPIPE or SIGINT ended
DESCRIPTION = """\
Train residual networks with less memory: momentumnet converts them into Momentum ResNets, whose backward pass
computes activations again, bit for bit, instead of storing them."""
EPILOG = """\
examples:
  momentumnet inspect resnet50                    which blocks can be converted, and the memory that this saves
  momentumnet finetune                            fine-tune a converted ResNet-18 on handwritten digits (minutes)
  momentumnet finetune --data photos --compare    the same on a folder of images, beside the unconverted network
  momentumnet evaluate runs/resnet18-digits       accuracy and confusion matrix of what was trained
  momentumnet predict runs/resnet18-digits 7.png  what the network takes an image for
  momentumnet bench depth                         memory and time against depth, with a plot
  momentumnet doctor                              what is installed, which native kernels run, and what is missing

exit status: 0 done; after one line that says why (--traceback shows where): 1 it could not be done as asked, 2 options
or files cannot be used, 3 the machine lacks what is needed (memory, disk, a right to write, a package);
130 interrupted, 141 the reader of the output has gone

completion: eval "$(register-python-argcomplete momentumnet)" in .bashrc or .zshrc"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None for that of the process.

    Returns:
        The exit status, as the program's help says; 1, 2 and 3 after a message on stderr.
        Wrong arguments leave through ``SystemExit`` with status 2, as argparse does it.
    """
    _write_whatever_there_is_to_say()
    completion.answer(program)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = program().parse_args(config_file.expanded(given))
    except CommandError as error:
        print(f"momentumnet: error: {error}", file=sys.stderr)
        return error.status
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # only the message matters
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # of ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        print("momentumnet: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # what explain does not know is raised again
        explained = explain(error)
        if explained is None:
            raise
        if options.traceback:
            traceback.print_exc()
        message, status = explained
        print(f"momentumnet: error: {message}", file=sys.stderr)
        return status
    return 0


def program() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="momentumnet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (inspect, finetune, evaluate, predict, export, bench, doctor):
        command.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, of the command that they are about, without the list of all options."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation would be one to argparse alone: --conf would name a file that nobody reads.
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # a command's parser is asked by this
        known = self._option_string_actions
        try:
            args = config_file.as_switches(sys.argv[1:] if args is None else args, known)
        except argparse.ArgumentError as error:
            self.error(str(error))
        options, unknown = super().parse_known_args(args, namespace)
        if len(unknown) == 1 and MODEL in known and not unknown[0].startswith("-"):
            return super().parse_known_args(self._with_model(unknown[0], args), namespace)
        if unknown:
            first = next((place for place, word in enumerate(unknown) if word.startswith("-")), 0)
            words = unknown[first : first + 1] if "=" in unknown[first] else unknown[first:]
            self.error(f"{' '.join(words)}: no such {self._kind_of(unknown[first])}")
        return options, unknown

    def _with_model(self, word: str, args: Sequence[str]) -> list[str]:
        """The command line with a word that stands alone as its model, which wins over that of a file."""
        typed = [given for given in args if not isinstance(given, config_file.FromFile)]
        if any(given.partition("=")[0] == MODEL for given in typed):
            self.error(f"{word}: there is a {MODEL} already; give one model, with {MODEL} or without")
        return [*(given for given in args if given is not word), f"{MODEL}={word}"]

    def _kind_of(self, unknown: str) -> str:
        if not unknown.startswith("-"):
            return "argument"
        flag = unknown.partition("=")[0]
        close = [name for name in self._option_string_actions if len(flag) > 3 and name.startswith(flag)][:2]
        close = close or difflib.get_close_matches(flag, self._option_string_actions, n=2, cutoff=0.75)
        return f"option (did you mean {' or '.join(close)}?)" if close else "option"

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.status, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _write_whatever_there_is_to_say() -> None:
    """Names of classes and files, and the signs in a help, may be none of the output's encoding: no reason to end."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"momentumnet: warning: {message}", file=sys.stderr)
