"""``momentumnet bench paper``: the toy experiments of the paper on Momentum ResNets, and its theory of linear maps."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from momentumnet.bench.paper.crossing import Crossing
from momentumnet.bench.paper.flows import FlowExperiment
from momentumnet.bench.paper.linear_fits import DIMENSIONS, LinearMaps
from momentumnet.bench.paper.rings import PointClouds, Rings
from momentumnet.bench.paper.tables import table
from momentumnet.bench.reporting import seeds
from momentumnet.bench.reporting.results import Results
from momentumnet.cli import arguments
from momentumnet.cli.bench.options import add_cpu_benchmark, add_quick, add_resume
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_choice
from momentumnet.command_errors import UsageError

SEEDS, QUICK_STEPS, QUICK_POINTS = 5, 10, 20
FLOWS: dict[str, type[FlowExperiment]] = {kind.name: kind for kind in (Crossing, Rings, PointClouds)}
# Steps and points of the small run.
STEPS = {"crossing": 300, "rings": 300, "point-clouds": 1000, "linear": 500}
POINTS = {"crossing": 50, "rings": 50, "point-clouds": 50}
TEXT = CommandText(
    "crossing trajectories, nested rings and linear maps, ResNet beside Momentum ResNet",
    """\
Do the toy experiments of Momentum Residual Neural Networks (Sander, Ablin, Blondel, Peyre, ICML 2021) with a ResNet and
a Momentum ResNet of the same size.

experiments:
  crossing      learn x -> -x**3 on the line: trajectories have to cross
  rings         tell two nested rings apart by where the layers take them
  point-clouds  the same with four nested rings in two classes, as in the paper
  linear        fit linear maps, and compare with what the eigenvalues say can be represented""",
    """\
examples:
  momentumnet bench paper
  momentumnet bench paper --experiment linear
  momentumnet bench paper --experiment point-clouds --steps 5000 --points 2000 --seeds 10

The seeds of a model are trained side by side, and written when they are done. Writes paper-EXPERIMENT.json, .md and
.png to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, "paper", TEXT, run)
    add_quick(command)
    add_choice(command, "--experiment", tuple(STEPS), "what is done")
    command.add_argument(
        "--seeds", type=arguments.positive, metavar="N", help=f"seeds 0, ..., N - 1 (default: {SEEDS}; with --quick 2)"
    )
    for name, meaning, own, quick in (
        ("steps", "training steps", STEPS, QUICK_STEPS),
        ("points", "points in a step, or in each ring", POINTS, QUICK_POINTS),
    ):
        listed = ", ".join(f"{count} for {experiment}" for experiment, count in own.items())
        help_text = f"{meaning} (default: {listed}; with --quick {quick})"
        command.add_argument(f"--{name}", type=arguments.positive, metavar="N", help=help_text)
    add_resume(command, unit="model")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: An option is given that the experiment does not have.
        CheckpointError: ``--resume`` finds results of something else.
    """
    from momentumnet.bench.paper.plots import plot
    from momentumnet.cli.report import Report

    report, experiment = Report.of(options), _experiment(options)
    own = range(options.seeds or (2 if options.quick else SEEDS))
    results = Results.begin(
        options.output / f"paper-{experiment.name}.json",
        command="bench paper",
        device=torch.device("cpu"),
        settings=experiment.settings(),
        resume=options.resume,
    )
    with report.progress() as progress:
        for model in experiment.models:
            missing = [seed for seed in own if not results.holds(model=model, seed=seed)]
            if missing:
                task = progress.add_task(f"{experiment.name}, {model}", total=_steps(experiment))
                advance: Callable[[], object] = partial(progress.advance, task)
                results.add(experiment.rows(model, missing, advance))
                progress.remove_task(task)
    seeds.sort_rows(results.rows, [{"model": model, "seed": seed} for model in experiment.models for seed in own])
    finish(report, results, [table(results.rows, results.header["settings"])], partial(plot, experiment))


def _experiment(options: argparse.Namespace) -> FlowExperiment | LinearMaps:
    name = options.experiment
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS[name])
    if name == LinearMaps.name:
        if options.points is not None:
            raise UsageError(f"--points is for {', '.join(POINTS)}; {name} fits matrices and draws none")
        return LinearMaps(steps)
    return FLOWS[name](steps, options.points or (QUICK_POINTS if options.quick else POINTS[name]))


def _steps(experiment: FlowExperiment | LinearMaps) -> int:
    return experiment.steps * (len(DIMENSIONS) if isinstance(experiment, LinearMaps) else 1)
