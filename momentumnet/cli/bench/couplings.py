"""``momentumnet bench couplings``: what each coupling keeps of a network, takes, and comes to after fine-tuning."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from momentumnet.bench.couplings.measure import measure
from momentumnet.bench.couplings.table import table
from momentumnet.bench.data.images import load_digits
from momentumnet.bench.reporting.results import Results
from momentumnet.cli.bench.options import add_cpu_benchmark, add_quick, add_repeats, add_resume, capped, chosen_repeats
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_count

TEXT = CommandText(
    "couplings: function kept, bits, time, accuracy",
    """\
Pretrain a small transformer on half of the digits, turn it into a reversible network by each rule, and fine-tune it on
all, on the CPU: how much its outputs change, what a block takes, the time of a step, the accuracy at the end.""",
    """\
examples:
  OMP_NUM_THREADS=1 momentumnet bench couplings
  momentumnet bench couplings --layers 12 --epochs 20 --seeds 5

Each seed is written as soon as it is done; with --resume more are added to those that are there. Writes couplings.json
and couplings.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, "couplings", TEXT, run)
    add_count(command, "--layers", 6)
    add_count(command, "--epochs", 6)
    add_count(command, "--seeds", 3)
    add_repeats(command)
    add_resume(command, unit="seed")
    add_quick(command)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: With --resume, the results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    capped(options, layers=2, epochs=1, seeds=1)
    report, data = Report.of(options), load_digits()
    counts = {"layers": options.layers, "epochs": options.epochs, "repeats": chosen_repeats(options)}
    results = Results.begin(
        options.output / "couplings.json",
        command="bench couplings",
        device=torch.device("cpu"),
        settings=counts,
        resume=options.resume,
    )
    for seed in range(options.seeds):
        if not results.holds(seed=seed):
            results.add(measure(seed, data, **counts))
            report.remark(f"seed {seed}: done")
    finish(report, results, [table(results.rows, counts)])
