"""``momentumnet bench sam-step``: what a step of SAM costs beside its two passes."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from momentumnet.bench.reporting.results import Results
from momentumnet.bench.sam_step.measure import measure
from momentumnet.bench.sam_step.operations import CHUNKS, OPTIONS
from momentumnet.bench.sam_step.table import table
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText

CASES, QUICK_CASES = "16x32,64x32,16x64,64x64", "8x16"
REPEATS = 15
TEXT = CommandText(
    "time and memory of a step of SAM",
    """\
Time steps of SAM and of its variants on torchvision's ResNet-18, on the CPU, beside two plain forward and backward
passes with one step of SGD, and show the peak memory beyond that of these, in copies of the parameters.""",
    """\
examples:
  OMP_NUM_THREADS=1 momentumnet bench sam-step
  momentumnet bench sam-step --cases 16x32 --repeats 3

Writes sam-step.json and sam-step.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_cpu_benchmark(benchmarks, "sam-step", TEXT, run)
    command.add_argument("--cases", type=_cases, metavar="NxS,...", help=f"batch x image size (default: {CASES})")
    common.add_repeats(command, REPEATS)
    common.add_quick(command)


def _cases(text: str) -> list[tuple[int, int]]:
    found = []
    for case in text.split(","):
        batch, cross, size = case.partition("x")
        # In the last layers of the smallest images batch normalisation needs two images in a chunk.
        if not (batch.isdigit() and cross and size.isdigit() and int(batch) >= 2 * CHUNKS and int(size) > 0):
            raise argparse.ArgumentTypeError(
                f"{case!r} is no batch ({2 * CHUNKS} or more) x image size; write for example 16x32"
            )
        found.append((int(batch), int(size)))
    return found


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from momentumnet.cli.report import Report

    report, network = Report.of(options), "ResNet-10" if options.quick else "ResNet-18"
    cases = options.cases or _cases(QUICK_CASES if options.quick else CASES)
    repeats = common.chosen_repeats(options, REPEATS)
    settings = {"network": network, "cases": cases, "repeats": repeats, "sgd": OPTIONS}
    path = options.output / "sam-step.json"
    results = Results.begin(path, command="bench sam-step", device=torch.device("cpu"), settings=settings)
    for batch, size in cases:
        results.add(measure(network, batch, size, repeats=repeats))
    finish(report, results, [table(results.rows, settings)])
