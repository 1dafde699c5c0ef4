"""How a command is added to the program, and the options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from momentumnet.cli import arguments

DEFAULT = "(default: %(default)s)"


@dataclass(frozen=True)
class CommandText:
    """What a command says of itself.

    Attributes:
        summary: Half a line, in the list of commands.
        description: Before its options.
        epilog: Behind them: examples, and what it writes.
    """

    summary: str
    description: str
    epilog: str


def add_command(
    commands: Any,
    name: str,
    text: CommandText,
    run: Callable[[argparse.Namespace], None],
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """Adds a command with the options of every command, behind those of ``parents``, to a parser's subcommands."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        parents=[*parents, common()],
        help=text.summary,
        description=text.description,
        epilog=text.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def common() -> argparse.ArgumentParser:
    """The options of every command."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="print the result as JSON on stdout, everything else to stderr"
    )
    group.add_argument("--quiet", action="store_true", help="only the result and warnings: no progress, no remarks")
    group.add_argument("--traceback", action="store_true", help="show where in the program an error arose")
    return parser


def conversion(*, others: str) -> argparse.ArgumentParser:
    """The options of the commands that convert one model; ``others`` is the default of ``--others``."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("conversion")
    group.add_argument(
        "--gamma",
        type=arguments.gamma,
        metavar="G",
        help="momentum factor, e.g. 1/8 or 0.9. Small values keep a pretrained network's function, large ones cost "
        "less memory (default: 1/8; with --budget or --spare 0, the network's own function, or 1/8 where that is "
        "quicker)",
    )
    add_choice(
        group,
        "--others",
        ("keep", "checkpoint"),
        "what is outside the streams: keep its activations (but for residual blocks that stand alone), or compute it "
        "again too",
        default=others,
    )
    group.add_argument(
        "--spare",
        type=arguments.byte_count,
        default=0,
        metavar="SIZE",
        help="memory above the least that a step can take, e.g. 512MiB: a --budget of the least and so much more "
        "(default: none)",
    )
    return parser


def add_choice(
    parser: argparse._ActionsContainer, flag: str, choices: Sequence[str], meaning: str, *, default: str | None = None
) -> None:
    """Adds an option with a few values, of which the first is the default unless another one is named."""
    parser.add_argument(flag, choices=choices, default=default or choices[0], help=f"{meaning} {DEFAULT}")


def add_count(parser: argparse._ActionsContainer, flag: str, default: int, meaning: str = "") -> None:
    """Adds an option whose value is a positive integer."""
    parser.add_argument(
        flag, type=arguments.positive, default=default, metavar="N", help=f"{meaning} {DEFAULT}".lstrip()
    )


def add_input(parser: argparse._ActionsContainer) -> None:
    """Adds ``--input``."""
    parser.add_argument(
        "--input",
        type=arguments.model_input,
        action="append",
        metavar="SHAPE|MODULE:FUNCTION",
        help="shape of an input, e.g. 2x3x224x224, 2x16:int64 or input_ids=2x16:int64, once for each input; or a "
        "function that returns all of them (default: what the model is made for)",
    )


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """Adds the run whose network is used."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run")


def add_skip_broken(parser: argparse._ActionsContainer) -> None:
    """Adds ``--skip-broken``."""
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be read, and count them"
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Adds ``--device``."""
    parser.add_argument(
        "--device", type=arguments.device, metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )


def chosen_device(options: argparse.Namespace) -> torch.device:
    """What ``--device`` names, or else the first CUDA device, or else the CPU."""
    chosen: torch.device | None = options.device
    return chosen or torch.device("cuda" if torch.cuda.is_available() else "cpu")
