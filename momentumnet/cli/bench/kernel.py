"""``momentumnet bench kernel``: the momentum step's bandwidth beside that of a plain addition."""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from typing import Any

import torch

from momentumnet.bench.kernel.measure import measure
from momentumnet.bench.kernel.state import DTYPES, measure_state
from momentumnet.bench.kernel.table import state_table, table
from momentumnet.bench.reporting.results import Results
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, chosen_device

TEXT = CommandText(
    "bandwidth of the momentum step",
    """\
Time the exact momentum step and its inverse, native (where it is built) and in PyTorch operations, against x.add_(v)
on the same device: bytes per second over bytes per second. At 1.0 the step is as fast as memory allows. Then measure
the bytes that the state takes for each element of a stream, at gamma 9/10 and 1/8.""",
    """\
examples:
  momentumnet bench kernel
  momentumnet bench kernel --elements 16777216 --threads 1,2,4 --gammas 1/8

Writes kernel.json, kernel.md and kernel.png to --output.""",
)

# Of the streams whose state is weighed.
STREAM_GAMMAS, STREAM_DEPTHS = (Fraction(9, 10), Fraction(1, 8)), (4, 24, 48)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(benchmarks, "kernel", TEXT, run)
    common.add_counts(command, "--elements", "sizes of the state (default: 1048576,16777216; with --quick 65536)")
    common.add_counts(command, "--threads", "numbers of CPU threads (default: 1 and as many as PyTorch uses)")
    common.add_gammas(command, "9/10")
    common.add_repeats(command)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from momentumnet.bench.kernel.plot import plot_kernel
    from momentumnet.cli.report import Report

    report, device = Report.of(options), chosen_device(options)
    sizes = options.elements or ([1 << 16] if options.quick else [1 << 20, 1 << 24])
    threads = [torch.get_num_threads()] if device.type == "cuda" else options.threads or [1, torch.get_num_threads()]
    repeats = common.chosen_repeats(options)
    settings = {"gammas": [str(gamma) for gamma in options.gammas], "repeats": repeats}
    results = Results.begin(options.output / "kernel.json", command="bench kernel", device=device, settings=settings)
    states = [
        measure_state(min(sizes), gamma, dtype, blocks, device)
        for dtype, gamma, blocks in itertools.product(DTYPES, STREAM_GAMMAS, STREAM_DEPTHS)
    ]
    results.header["states"] = states
    cases = list(itertools.product(options.gammas, sizes, sorted(set(threads))))
    with report.progress() as progress:
        task = progress.add_task("", total=len(cases))
        for gamma, elements, count in cases:
            progress.update(task, description=f"gamma {gamma}, {elements} elements, {count} threads")
            results.add(measure(elements, gamma, count, device, repeats=repeats))
            progress.advance(task)
    tables = [table(results.rows, results.header["machine"]["kernels"]), state_table(states)]
    finish(report, results, tables, plot_kernel)
