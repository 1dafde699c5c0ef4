"""``momentumnet bench plan``: the memory that plans predict beside what is measured."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from momentumnet.bench.plan.measure import BUDGETS, STEPS, measure
from momentumnet.bench.plan.networks import NETWORKS, QUICK_NETWORKS
from momentumnet.bench.plan.table import table
from momentumnet.bench.reporting.results import Results
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, chosen_device

TEXT = CommandText(
    "predicted and measured memory of planned steps",
    """\
Plan a training step (momentumnet.plan with a budget) at the least budget that there is, at one that keeps everything,
and between, and measure the peak of the step that follows the plan: two batch sizes, float32 and bfloat16 autocast.
Planning itself is timed beside a plain step.""",
    """\
examples:
  momentumnet bench plan
  momentumnet bench plan --network unet --network resnet50
  momentumnet bench plan --resume

Writes plan.json and plan.md to --output.""",
)
TYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(benchmarks, "plan", TEXT, run)
    command.add_argument(
        "--network",
        action="append",
        choices=tuple(NETWORKS),
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}; once for each (default: all; with --quick: {', '.join(QUICK_NETWORKS)})",
    )
    command.add_argument("--dtype", choices=tuple(TYPES), help="one of the two types alone (default: both)")
    common.add_resume(command, unit="network, type and batch size")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: ``--resume`` finds results of something else.
    """
    from momentumnet.cli.report import Report

    report, device = Report.of(options), chosen_device(options)
    path = options.output / "plan.json"
    settings = {"timed steps": STEPS}
    results = Results.begin(path, command="bench plan", device=device, settings=settings, resume=options.resume)
    chosen = options.network or (QUICK_NETWORKS if options.quick else tuple(NETWORKS))
    types = [options.dtype] if options.dtype else list(TYPES)
    with report.progress() as progress:
        for name, dtype, place in ((n, t, p) for n in chosen for t in types for p in range(1 if options.quick else 2)):
            key = {"network": name, "dtype": dtype, "batch": NETWORKS[name].batches[place]}
            if results.holds(**key):
                continue
            task = progress.add_task(f"{name}, {dtype}, batch of {key['batch']}", total=len(BUDGETS))
            rows = measure(
                NETWORKS[name],
                key["batch"],
                device,
                dtype=TYPES[dtype],
                advance=lambda task=task: progress.advance(task),  # type: ignore[misc]
            )
            results.add([{**key, **row} for row in rows])
            progress.remove_task(task)
    finish(report, results, [table(results.rows)])
