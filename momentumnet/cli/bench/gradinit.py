"""``momentumnet bench gradinit``: how GradInit's objective falls, and what an iteration costs."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from momentumnet.bench.gradinit.costs import costs
from momentumnet.bench.gradinit.objective import falls
from momentumnet.bench.gradinit.tables import tables
from momentumnet.bench.reporting.results import Results
from momentumnet.cli.bench.options import add_cpu_benchmark, add_quick, capped
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.bench.training_options import add_data, load
from momentumnet.cli.options import CommandText, add_count

PARTS = ("fall", "cost")
TEXT = CommandText(
    "GradInit's objective, and what an iteration costs",
    """\
Run GradInit on a CIFAR ResNet without normalisation from two starts, before and after conversion, and show how far its
objective falls; and measure time and peak memory of an iteration beside the plain way, double backward. On the CPU.""",
    """\
examples:
  momentumnet bench gradinit
  momentumnet bench gradinit fall --data cifar10_small.npz --batch-size 16 --depth 20 --steps 10

Each row is written as soon as it is done: the same command goes on where the last one ended. Writes gradinit-DATA.json
and gradinit-DATA.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, "gradinit", TEXT, run)
    command.add_argument("parts", nargs="*", type=_part, default=PARTS, metavar="fall|cost", help="(default: both)")
    add_data(command)
    add_count(command, "--depth", 56)
    add_count(command, "--deep", 110, "depth of the network with normalisation")
    add_count(command, "--batch-size", 64)
    add_count(command, "--steps", 100)
    add_count(command, "--repeats", 3)
    add_quick(command)


def _part(text: str) -> str:
    # Not by ``choices``: with them argparse refuses the default of a list.
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {' nor '.join(PARTS)}")
    return text


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    capped(options, depth=14, deep=14, batch_size=16, steps=4, repeats=1)  # a stream needs two blocks of one shape
    report, data = Report.of(options), load(options.data)
    settings = {"data": data.name, "depth": options.depth, "batch_size": options.batch_size, "steps": options.steps}
    results = Results.begin(
        options.output / f"gradinit-{data.name}.json",
        command="bench gradinit",
        device=torch.device("cpu"),
        settings=settings,
        resume=True,
        anew="remove the file",
    )
    cells = {
        "fall": falls(data, depth=options.depth, batch_size=options.batch_size, steps=options.steps),
        "cost": costs(depth=options.depth, deep=options.deep, repeats=options.repeats),
    }
    for part in options.parts:
        for key, measure in cells[part]:
            if not results.holds(**key):
                row = {**key, **measure()}
                results.add([row])
                report.remark(str({name: value for name, value in row.items() if not isinstance(value, list)}))
    finish(report, results, tables(results.rows, settings))
