"""``momentumnet bench sam``: accuracy and flatness by optimizer, with right labels and with wrong ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.sam.methods import METHODS, Recipe
from momentumnet.bench.sam.tables import curves, named, outcome, tables
from momentumnet.bench.sam.training import Training
from momentumnet.bench.trainings.recipe import settings
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, chosen_device

MODELS, QUICK_MODELS = "resnet20_bn", "resnet8_bn"
NOISE = "0,20,40,60"
TEXT = CommandText(
    "accuracy and sharpness by optimizer, with wrong labels too",
    f"""\
Train networks with each optimizer, each share of wrong training labels and each seed. Compare test accuracy, the
sharpness of the loss at the end (Foret et al., ICLR 2021) and the largest eigenvalue of its Hessian.

models: {cifar_networks.NAMES}

methods, each on top of SGD with momentum:
  sgd             nothing else: one pass a step
  sgd_2x          twice the epochs, so as many passes as the methods below
  extragradient   momentumnet.optim.Extragradient: two passes a step
  sam             momentumnet.optim.SAM: two passes a step
  asam            adaptive SAM, biases not scaled: two passes a step""",
    """\
examples:
  momentumnet bench sam
  momentumnet bench sam --models resnet32_bn --data cifar10 --epochs 200 --noise 0,20,40,60,80
  momentumnet bench sam --data cifar10_small.npz --train-samples 4000 --methods sgd_2x,sam

Each row (model, noise, method, seed) is written as soon as it is done: the same command goes on where the last one
ended, and more models, noise, methods or seeds are added to what is there. Writes sam-DATA.json, .md and .png to
--output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "sam", TEXT, run)
    common.add_options(command, models=MODELS, methods=METHODS)
    common.add_noise(command, NOISE, several=True)
    for name, rho, method in (("rho", 0.05, "sam"), ("asam-rho", 0.5, "asam")):
        meaning = f"radius of {method} (default: %(default)s)"
        command.add_argument(f"--{name}", type=arguments.radius, default=rho, metavar="R", help=meaning)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.reporting.plots import plot_accuracies
    from momentumnet.cli.report import Report

    report, device, data = Report.of(options), chosen_device(options), common.chosen_images(options)
    recipe = Recipe(**common.chosen_recipe(options), rho=options.rho, asam_rho=options.asam_rho)
    results = trainings.begin(options, "bench sam", f"sam-{data.name}", settings(data, recipe), device)

    def training(case: Case) -> Training:
        return Training(case["model"], case["seed"], data, recipe, device, case["noise"], METHODS[case["method"]])

    def plot(rows: Sequence[Row], path: Path) -> None:
        plot_accuracies(curves(rows), path, title="Accuracy with wrong labels", x="wrong training labels, %")

    cases = _cases(options)
    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, tables(results.rows, results.header["settings"]), plot)


def _cases(options: argparse.Namespace) -> list[Case]:
    return [
        {"model": model, "noise": noise, "method": method, "seed": seed}
        for model in common.chosen_models(options, MODELS, QUICK_MODELS)
        for noise in options.noise
        for seed in common.chosen_seeds(options)
        for method in options.methods  # which take turns: a machine that gets slower slows them all alike
    ]
