"""``momentumnet bench depth``: memory and time against depth, for several ways to train the same blocks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from momentumnet.bench.depth.measure import ended_methods, measure
from momentumnet.bench.depth.simulate import GIANTS, simulate
from momentumnet.bench.depth.table import simulated_table, table
from momentumnet.bench.networks.measured import FAMILIES, family
from momentumnet.bench.reporting.results import Results
from momentumnet.cli import arguments
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_choice, chosen_device

if TYPE_CHECKING:
    import torch

    from momentumnet.cli.report import Report

TEXT = CommandText(
    "memory and time against the number of blocks",
    """\
Measure the peak memory and the time of one training step against the number of residual blocks: with stored
activations, with torch.utils.checkpoint around every block and around every √n of n blocks, and converted at two values
of gamma. With --budget, each method goes on to deeper networks until its peak passes the budget.""",
    """\
examples:
  momentumnet bench depth
  momentumnet bench depth --family transformer --depths 4,8,16,32,64
  momentumnet bench depth --budget 512MiB --repeats 1
  momentumnet bench depth --gammas 0.9,1/2,1/16 --output results
  momentumnet bench depth --simulate vit-22b decoder-70b

Writes depth-FAMILY.json, depth-FAMILY.md and depth-FAMILY.png to --output; with --simulate depth-simulated.json and
.md.""",
)
DEPTHS, BUDGET_DEPTHS, QUICK_DEPTHS = [4, 8, 16, 32, 64], [8, 16, 32, 64, 128, 256, 512, 1024], [2, 4]


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(benchmarks, "depth", TEXT, run)
    add_choice(command, "--family", FAMILIES, "kind of block")
    command.add_argument(
        "--depths",
        type=arguments.depths,
        metavar="N,...",
        help=f"(default: {_listed(DEPTHS)}; with --budget {_listed(BUDGET_DEPTHS)}; with --quick "
        f"{_listed(QUICK_DEPTHS)})",
    )
    command.add_argument(
        "--budget",
        type=arguments.byte_count,
        metavar="SIZE",
        help="peak memory of a step, e.g. 512MiB, at which a method's series ends (default: none)",
    )
    command.add_argument(
        "--simulate",
        nargs="+",
        choices=tuple(GIANTS),
        metavar="NAME",
        help=f"instead, the bytes of a step that no machine at hand holds, without running it: {', '.join(GIANTS)}",
    )
    common.add_gammas(command, "9/10,1/8")
    common.add_dtype(command)
    common.add_repeats(command)
    common.add_resume(command, unit="depth")


def _listed(depths: Sequence[int]) -> str:
    return ",".join(map(str, depths))


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: ``--resume`` finds results of something else.
    """
    from momentumnet.bench.depth.plot import plot_depth
    from momentumnet.cli.report import Report

    report, device, name = Report.of(options), chosen_device(options), options.family
    if options.simulate:
        _simulate(options, report, device)
        return
    shape = list(family(name, 1).example().shape)
    repeats = common.chosen_repeats(options)
    settings = {"family": name, "input": shape, **common.step_settings(options), "budget": options.budget}
    results = Results.begin(
        options.output / f"depth-{name}.json",
        command="bench depth",
        device=device,
        settings={**settings, "repeats": repeats},
        resume=options.resume,
    )
    step = partial(measure, dtype=options.dtype, repeats=repeats, budget=options.budget)
    with report.progress() as progress:
        for depth in options.depths or _default_depths(options):
            if not results.holds(depth=depth):
                task = progress.add_task(f"{depth} {name} blocks", total=None)
                results.add(step(name, depth, options.gammas, device, ended=ended_methods(results.rows, depth)))
                progress.remove_task(task)
    plot = partial(plot_depth, title=f"One training step of {name} blocks", budget=options.budget)
    finish(report, results, [table(results.rows, name, shape, options.budget)], plot)


def _simulate(options: argparse.Namespace, report: Report, device: torch.device) -> None:
    path = options.output / "depth-simulated.json"
    results = Results.begin(path, command="bench depth --simulate", device=device, settings={}, resume=options.resume)
    with report.progress() as progress:
        for name in options.simulate:
            if not results.holds(network=name):
                task = progress.add_task(name, total=None)
                results.add([{"network": name, **row} for row in simulate(GIANTS[name])])
                progress.remove_task(task)
    finish(report, results, [simulated_table(results.rows)])


def _default_depths(options: argparse.Namespace) -> Sequence[int]:
    return QUICK_DEPTHS if options.quick else BUDGET_DEPTHS if options.budget else DEPTHS
