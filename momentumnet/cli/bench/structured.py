"""``momentumnet bench structured``: forward time of a network without some of its channels or blocks."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from momentumnet.bench.reporting.results import Results
from momentumnet.bench.structured.measure import measure
from momentumnet.bench.structured.table import table
from momentumnet.cli.bench.options import add_cpu_benchmark, add_quick, capped
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_count

TEXT = CommandText(
    "forward time after structured pruning",
    """\
Time the forward pass of a ResNet-20 without half of its channels, and without a third of its blocks, on the CPU:
masked, where the dense network still computes everything, and shrunk, where what is gone is not computed.""",
    """\
examples:
  momentumnet bench structured
  momentumnet bench structured --batch-size 16 --repeats 5

Writes structured.json and structured.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, "structured", TEXT, run)
    add_count(command, "--batch-size", 128)
    add_count(command, "--repeats", 30)
    add_quick(command)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from momentumnet.cli.report import Report

    capped(options, batch_size=16, repeats=3)
    settings = {"batch_size": options.batch_size, "repeats": options.repeats}
    path = options.output / "structured.json"
    results = Results.begin(path, command="bench structured", device=torch.device("cpu"), settings=settings)
    results.add(measure(**settings))
    finish(Report.of(options), results, [table(results.rows, settings)])
