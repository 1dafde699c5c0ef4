"""``momentumnet bench``: memory, time, exactness and methods of training, each beside its alternatives.

The command lines of `momentumnet.bench`, one file a benchmark.
"""

from __future__ import annotations

import argparse
from typing import Any

from momentumnet.cli.bench import (
    couplings,
    depth,
    gamma_schedule,
    gradinit,
    init,
    init_text,
    kernel,
    lottery,
    paper,
    peers,
    plan,
    quality,
    sam,
    sam_step,
    sharpness,
    step,
    structured,
    zoo,
)

_BENCHMARKS = (
    depth,
    step,
    plan,
    kernel,
    peers,
    couplings,
    gamma_schedule,
    init,
    init_text,
    sam,
    sharpness,
    lottery,
    paper,
    quality,
    gradinit,
    sam_step,
    structured,
    zoo,
)


def add_parser(commands: Any) -> None:
    """Adds the command, with its benchmarks as subcommands, to the program's subcommands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="measure memory, time, exactness and methods of training"
    )
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for benchmark in _BENCHMARKS:
        benchmark.add_parser(benchmarks)
