"""``momentumnet bench lottery``: accuracy against sparsity, of lottery tickets and their two controls."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench import cifar_networks
from momentumnet.bench.lottery.tables import curves, named, outcome, tables
from momentumnet.bench.lottery.training import ADAM_RATE, INITIALISATIONS, Lottery, Recipe
from momentumnet.bench.recipe import settings
from momentumnet.bench.results import Row
from momentumnet.bench.seeds import Case
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_choice, chosen_device
from momentumnet.command_errors import UsageError

MODELS, QUICK_MODELS = "lenet300,resnet20_bn", "lenet300"
TEXT = CommandText(
    "accuracy of lottery tickets and controls by sparsity",
    f"""\
Find lottery tickets by iterative magnitude pruning (Frankle, Carbin, ICLR 2019), and train them beside two controls:
their masks on newly drawn weights, and their weights under random masks that are as sparse in each layer.

models: {cifar_networks.NAMES}

methods, the initialisation of the network and of the newly drawn weights:
  xavier    Glorot's, which the paper used
  kaiming   momentumnet.init.kaiming_
  gradinit  momentumnet.init.gradinit_, after Kaiming's""",
    """\
examples:
  momentumnet bench lottery
  momentumnet bench lottery --models resnet20_bn --data cifar10 --epochs 160 --rewind-epochs 2 --rounds 12
  momentumnet bench lottery --models resnet20_bn --structure channel

Each row (model, method, seed) is written as soon as it is done, and each training inside of it too: the same command
goes on where the last one ended, and more models, methods or seeds are added to what is there. Writes
lottery-DATA.json, .md and .png to --output; with --structure, lottery-STRUCTURE-DATA. The trainings lie in a folder
beside them, which may be deleted when the rows are done.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "lottery", TEXT, run)
    common.add_options(command, models=MODELS, methods=INITIALISATIONS)
    group = command.add_argument_group("pruning")
    group.add_argument(
        "--rounds", type=arguments.positive, metavar="N", help="number of prunings (default: 8; with --quick 1)"
    )
    group.add_argument(
        "--fraction",
        type=arguments.share,
        default=0.331,
        metavar="F",
        help="what a round takes of what is left (default: %(default)s, four rounds of which leave 20 %%)",
    )
    first = "begin the tickets with the weights of this epoch (default: %(default)s, the first weights)"
    group.add_argument("--rewind-epochs", type=arguments.whole, default=0, metavar="N", help=first)
    add_choice(group, "--structure", ("weight", "channel", "block"), "what is taken away at a time")
    add_choice(group, "--scope", ("global", "layer"), "compare the magnitudes of all layers, or of each")
    common.add_init_steps(group, "steps of gradinit (default: 390; with --quick 2)")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images or options cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.plots import plot_accuracies
    from momentumnet.cli.report import Report

    report, device, data = Report.of(options), chosen_device(options), common.chosen_images(options)
    recipe = _recipe(options)
    name = f"lottery-{data.name}" if recipe.structure == "weight" else f"lottery-{recipe.structure}-{data.name}"
    own = {**settings(data, recipe), "adam_lr": ADAM_RATE}
    results = trainings.begin(options, "bench lottery", name, own, device)
    folder = options.output / f"{name}-trainings"
    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]  # other settings have other trainings

    def training(case: Case) -> Lottery:
        place = folder / "-".join([*map(str, case.values()), digest])
        return Lottery(case["model"], case["seed"], data, recipe, device, case["method"], place)

    def plot(rows: Sequence[Row], path: Path) -> None:
        plot_accuracies(curves(rows), path, title=f"Lottery tickets, {data.name}", x="weights gone, %")

    cases = common.chosen_cases(options, MODELS, QUICK_MODELS)
    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, tables(results.rows, own), plot)


def _recipe(options: argparse.Namespace) -> Recipe:
    shared = common.chosen_recipe(options)
    if options.rewind_epochs >= shared["epochs"]:
        raise UsageError(
            f"--rewind-epochs {options.rewind_epochs} leaves nothing of {shared['epochs']} epochs; choose fewer"
        )
    return Recipe(
        **shared,
        fraction=options.fraction,
        rounds=options.rounds or (1 if options.quick else 8),
        rewind_epochs=options.rewind_epochs,
        structure=options.structure,
        scope=options.scope,
        init_steps=common.chosen_init_steps(options),
    )
