"""``momentumnet bench``: measurements of memory, time and exactness, each beside the alternatives in the same run."""

from __future__ import annotations

import argparse
from typing import Any

from momentumnet.cli.bench import depth, kernel, peers, step


def add_parser(commands: Any) -> None:
    """Adds the command, with its benchmarks as subcommands, to the program's subcommands."""
    parser: argparse.ArgumentParser = commands.add_parser("bench", help="measure memory, time and exactness")
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for benchmark in (depth, step, kernel, peers):
        benchmark.add_parser(benchmarks)
