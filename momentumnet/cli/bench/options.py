"""The options that all benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from momentumnet.cli import arguments


def add_benchmark(
    benchmarks: Any, name: str, *, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Adds a benchmark to the subcommands of ``bench``, with the options that all of them have."""
    command: argparse.ArgumentParser = benchmarks.add_parser(
        name,
        parents=[arguments.common()],
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs", "bench"), metavar="DIR", help="(default: %(default)s)"
    )
    command.add_argument("--quick", action="store_true", help="a small version that takes seconds, to try it out")
    arguments.add_device(command)
    return command


REPEATS = 5


def add_repeats(command: argparse.ArgumentParser) -> None:
    """Adds ``--repeats``; `chosen_repeats` has its value."""
    command.add_argument(
        "--repeats",
        type=arguments.positive,
        metavar="N",
        help=f"timed runs of each method, which take turns; the median counts (default: {REPEATS}; with --quick 1)",
    )


def chosen_repeats(options: argparse.Namespace) -> int:
    """The number of timed runs."""
    repeats: int = options.repeats or (1 if options.quick else REPEATS)
    return repeats


def add_resume(command: argparse.ArgumentParser, *, unit: str) -> None:
    """Adds ``--resume``, for benchmarks that write their results after each ``unit``."""
    command.add_argument(
        "--resume",
        action="store_true",
        help=f"keep what --output holds of the same settings; measure the {unit}s that are missing",
    )


def add_dtype(command: argparse.ArgumentParser) -> None:
    """Adds ``--dtype``."""
    command.add_argument(
        "--dtype",
        type=arguments.autocast_dtype,
        metavar="T",
        help="bfloat16 or float16: run the forward pass under autocast (default: float32 without)",
    )
