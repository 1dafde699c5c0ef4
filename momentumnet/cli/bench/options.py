"""The options that several benchmarks have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from momentumnet.cli import arguments
from momentumnet.cli.options import DEFAULT, CommandText, add_command, add_device

REPEATS = 5


def add_benchmark(
    benchmarks: Any, name: str, text: CommandText, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Adds a benchmark that can be tried out, on any device, to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, name, text, run)
    add_quick(command)
    add_device(command)
    return command


def add_cpu_benchmark(
    benchmarks: Any, name: str, text: CommandText, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Adds a benchmark with the options that all of them have to the subcommands of ``bench``."""
    command = add_command(benchmarks, name, text, run)
    command.add_argument("--output", type=Path, default=Path("runs", "bench"), metavar="DIR", help=DEFAULT)
    return command


def add_quick(command: argparse.ArgumentParser) -> None:
    """Adds ``--quick``."""
    command.add_argument("--quick", action="store_true", help="a small version that takes seconds, to try it out")


def capped(options: argparse.Namespace, **most: int) -> None:
    """With ``--quick``: makes the counts that are larger than ``most`` as small."""
    for name, value in most.items():
        if options.quick:
            setattr(options, name, min(getattr(options, name), value))


def add_gammas(command: argparse.ArgumentParser, default: str) -> None:
    """Adds ``--gammas``."""
    command.add_argument("--gammas", type=arguments.gammas, default=default, metavar="G,...", help=DEFAULT)


def add_counts(command: argparse.ArgumentParser, flag: str, meaning: str) -> None:
    """Adds an option whose value is a list of positive integers."""
    command.add_argument(flag, type=arguments.counts, metavar="N,...", help=meaning)


def add_repeats(command: argparse.ArgumentParser, default: int = REPEATS) -> None:
    """Adds ``--repeats``; `chosen_repeats` has its value."""
    command.add_argument(
        "--repeats",
        type=arguments.positive,
        metavar="N",
        help=f"timed runs of each method, which take turns; the median counts (default: {default}; with --quick 1)",
    )


def chosen_repeats(options: argparse.Namespace, default: int = REPEATS) -> int:
    """The number of timed runs."""
    repeats: int = options.repeats or (1 if options.quick else default)
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


def step_settings(options: argparse.Namespace) -> dict[str, Any]:
    """How the networks of a training step are converted, and in which type they run, as plain values."""
    dtype = None if options.dtype is None else str(options.dtype)
    return {"gammas": [str(gamma) for gamma in options.gammas], "dtype": dtype}
