"""``momentumnet bench sharpness``: what SAM does to the loss landscape, in the course of trainings and against rho."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.sharpness.measure import EIGENVALUES, PRODUCTS, TOLERANCE
from momentumnet.bench.sharpness.methods import METHODS, SAM, Recipe
from momentumnet.bench.sharpness.tables import named, outcome, tables
from momentumnet.bench.sharpness.training import Trajectory
from momentumnet.bench.trainings.optimizer_training import RADIUS
from momentumnet.bench.trainings.recipe import settings
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import DEFAULT, CommandText, chosen_device
from momentumnet.command_errors import UsageError

MODELS, QUICK_MODELS = "resnet20_bn", "resnet14_bn"
RHOS, QUICK_RHOS = "0,0.01,0.02,0.05,0.1,0.2,0.5", "0,0.2"
LOOKS, PROBES, QUICK_PROBES, ASCENTS = 5, 256, 16, 3
TEXT = CommandText(
    "what SAM does to the loss landscape, over the training and by rho",
    f"""\
Train networks with SGD, with SAM and with their controls, and look at the loss landscape several times on the way: by
how much the loss rises by SAM's own step of length {RADIUS:g} and to the highest point within that distance, and the
{EIGENVALUES} largest eigenvalues of the Hessian. Then train with SAM at several rho.

models: {cifar_networks.NAMES}

methods, each on top of SGD with momentum:
  sgd             nothing else: one pass a step
  sgd_2x          twice the epochs, so as many passes as the methods of two passes
  extragradient   momentumnet.optim.Extragradient: two passes a step
  sam             momentumnet.optim.SAM: two passes a step
  sgd_converted   sgd on the network made a Momentum ResNet (ResNets of 14 layers or more)
  sam_converted   sam on that network""",
    """\
examples:
  momentumnet bench sharpness
  momentumnet bench sharpness --models resnet20_bn --data cifar10 --epochs 200 --noise 0
  momentumnet bench sharpness --methods sgd,sam --rhos 0,0.05

Each row (model, method, rho, seed) is written as soon as it is done: the same command goes on where the last one ended,
and more models, methods, rhos or seeds are added to what is there. Writes sharpness-DATA.json, .md and .png to
--output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "sharpness", TEXT, run)
    common.add_options(command, models=MODELS, methods=METHODS)
    common.add_noise(command, "40")
    group = command.add_argument_group("SAM and conversion")
    group.add_argument("--rho", type=arguments.radius, default=0.05, metavar="R", help=f"radius of SAM {DEFAULT}")
    group.add_argument(
        "--rhos",
        type=arguments.radii,
        metavar="R,...",
        help=f"radii that sam is trained with as well, and looked at in the end (default: {RHOS}; with --quick "
        f"{QUICK_RHOS})",
    )
    group.add_argument(
        "--gamma", type=arguments.gamma, default="0.9", metavar="G", help=f"of the converted networks {DEFAULT}"
    )
    group = command.add_argument_group("landscape")
    for name, meaning, default, quick in (
        ("measurements", "times that it is looked at, after equal parts of the training", LOOKS, 1),
        ("probes", "training images on which it is looked at", PROBES, QUICK_PROBES),
        ("ascents", "points from which the highest one is looked for", ASCENTS, 1),
    ):
        help_text = f"{meaning} (default: {default}; with --quick {quick})"
        group.add_argument(f"--{name}", type=arguments.positive, metavar="N", help=help_text)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images or options cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.sharpness.plot import plot
    from momentumnet.cli.report import Report

    report, device, data = Report.of(options), chosen_device(options), common.chosen_images(options)
    recipe = _recipe(options, len(data.x_train))
    looked = {"radius": RADIUS, "eigenvalues": EIGENVALUES, "products": PRODUCTS, "tolerance": TOLERANCE}
    own = {**settings(data, recipe), **looked}
    results = trainings.begin(options, "bench sharpness", f"sharpness-{data.name}", own, device)

    def training(case: Case) -> Trajectory:
        rho, method = case["rho"], METHODS[case["method"]]
        chosen = recipe if rho is None else dataclasses.replace(recipe, rho=rho)
        looks = recipe.measurements if rho in (None, recipe.rho) else 1
        return Trajectory(case["model"], case["seed"], data, chosen, device, recipe.noise, method, looks)

    def draw(rows: Sequence[Row], path: Path) -> None:
        plot(rows, path, rho=recipe.rho)

    cases = _cases(options, recipe.rho)
    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, tables(results.rows, results.header["settings"]), draw)


def _recipe(options: argparse.Namespace, images: int) -> Recipe:
    shared = common.chosen_recipe(options)
    epochs = shared["epochs"]
    looks = options.measurements or min(epochs, LOOKS)
    if looks > epochs:
        raise UsageError(f"--measurements {looks} are more than {epochs} epochs; choose fewer, or more --epochs")
    probes = options.probes or min(images, QUICK_PROBES if options.quick else PROBES)
    if probes > images:
        raise UsageError(f"--probes {probes} are more than the {images} training images; choose fewer")
    return Recipe(
        **shared,
        rho=options.rho,
        noise=options.noise,
        gamma=str(options.gamma),
        measurements=looks,
        probes=probes,
        ascents=options.ascents or (1 if options.quick else ASCENTS),
    )


def _cases(options: argparse.Namespace, rho: float) -> list[Case]:
    models, own = common.chosen_models(options, MODELS, QUICK_MODELS), common.chosen_seeds(options)
    radii = arguments.radii(QUICK_RHOS if options.quick else RHOS) if options.rhos is None else options.rhos
    cases = [
        {"model": model, "method": method, "rho": rho if METHODS[method].has_radius else None, "seed": seed}
        for model in models
        for seed in own
        for method in options.methods
    ]
    return cases + [
        {"model": model, "method": SAM, "rho": radius, "seed": seed}
        for model in models
        for seed in own
        for radius in radii
        if SAM in options.methods and radius != rho
    ]
