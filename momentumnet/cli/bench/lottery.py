"""``momentumnet bench lottery``: accuracy against sparsity, of lottery tickets and their two controls."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentumnet.bench.lottery.cases import SETTINGS, named
from momentumnet.bench.lottery.tables import outcome, tables
from momentumnet.bench.lottery.training import ADAM_RATE, INITIALISATIONS, Lottery, Recipe
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.networks.cifar_networks import LENET
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings.recipe import settings
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_choice, chosen_device
from momentumnet.command_errors import UsageError
from momentumnet.prune.lottery.arms import CONTROLS, RANDOM_MASK, REINITIALISED

MODELS, QUICK_MODELS = "lenet300,resnet20_bn", "lenet300"
CHOSEN = {"reinitialised": (REINITIALISED,), "random-mask": (RANDOM_MASK,)}
USUAL = ("xavier", "kaiming", "gradinit")
TEXT = CommandText(
    "accuracy of lottery tickets and controls by sparsity",
    f"""\
Find lottery tickets by iterative magnitude pruning (Frankle, Carbin, ICLR 2019), and train them beside two controls:
their masks on newly drawn weights, and their weights under random masks that are as sparse in each layer.

models: {cifar_networks.NAMES}

methods, the initialisation of the network and of the newly drawn weights:
  xavier         Glorot's, uniform
  xavier_normal  Glorot's, normal, which the paper used
  kaiming        momentumnet.init.kaiming_
  fixup          momentumnet.init.fixup_, which takes batch normalisation out; residual networks only
  gradinit       momentumnet.init.gradinit_, after Kaiming's

{LENET} is trained with Adam at {ADAM_RATE}, whatever --lr says; the others with SGD.""",
    """\
examples:
  momentumnet bench lottery
  momentumnet bench lottery --models resnet20_bn --data cifar10 --epochs 160 --rewind-epochs 2 --rounds 12
  momentumnet bench lottery --models resnet20_bn --structure channel
  momentumnet bench lottery --models resnet20_bn,resnet56_bn --lr 0.1,0.01 --warmup-epochs 0,5 --rewind-epochs 0,2
  momentumnet bench lottery --models resnet20_bn --rounds 1 --fraction 0.8 --epochs 20 --dense-epochs 2,5,10,20

Each row (model, method, rate, warmup, rewinding, end of the dense training, seed) is written as soon as it is done, and
each training inside of it too: the same command goes on where the last one ended, and more of them are added to what
is there. Writes lottery-DATA.json, .md and .png to --output; with --structure, lottery-STRUCTURE-DATA. Where networks
or ends of the dense training compare, -networks.png and -dense.png show it. The trainings lie in a folder beside them,
which may be deleted when the rows are done.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "lottery", TEXT, run)
    common.add_options(command, models=MODELS, methods=INITIALISATIONS, usual=USUAL, several_rates=True)
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
    group.add_argument("--rewind-epochs", type=arguments.wholes, default="0", metavar="N,...", help=first)
    rising = "raise the learning rate through so many epochs (default: %(default)s)"
    group.add_argument("--warmup-epochs", type=arguments.wholes, default="0", metavar="N,...", help=rising)
    stop = "stop the dense training, which the first masks come from, after this epoch (default: never)"
    group.add_argument("--dense-epochs", type=arguments.counts, metavar="N,...", help=stop)
    add_choice(group, "--structure", ("weight", "channel", "block"), "what is taken away at a time")
    add_choice(group, "--scope", ("global", "layer"), "compare the magnitudes of all layers, or of each")
    add_choice(group, "--controls", ("both", *CHOSEN), "what is trained beside the tickets")
    common.add_init_steps(group, "steps of gradinit (default: 390; with --quick 2)")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images or options cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report, device, data = Report.of(options), chosen_device(options), common.chosen_images(options)
    cases = _cases(options)
    name = f"lottery-{data.name}" if options.structure == "weight" else f"lottery-{options.structure}-{data.name}"
    common_to_all = settings(data, _recipe(options, cases[0]))
    own = {key: value for key, value in common_to_all.items() if key not in SETTINGS} | {"adam_lr": ADAM_RATE}
    results = trainings.begin(options, "bench lottery", name, own, device)
    folder = options.output / f"{name}-trainings"
    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]  # other settings have other trainings

    def training(case: Case) -> Lottery:
        place = folder / "-".join([*map(str, case.values()), digest])
        return Lottery(case["model"], case["seed"], data, _recipe(options, case), device, case["method"], place)

    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, tables(results.rows, own), lambda rows, path: _plot(rows, path, data.name, own["epochs"]))


def _plot(rows: Sequence[Row], path: Path, data: str, epochs: int) -> None:
    from momentumnet.bench.lottery import curves
    from momentumnet.bench.reporting.plots import plot_accuracies

    title, gone = f"Lottery tickets, {data}", "weights gone, %"
    plot_accuracies(curves.by_arm(rows), path, title=title, x=gone)
    networks, shares = curves.by_network(rows), curves.by_dense_share(rows, epochs)
    if networks:
        plot_accuracies(networks, path.with_stem(f"{path.stem}-networks"), title=title, x=gone)
    if shares:
        share = "share of the dense training, %"
        plot_accuracies(shares, path.with_stem(f"{path.stem}-dense"), title=title, x=share)


def _cases(options: argparse.Namespace) -> list[Case]:
    """Each network and method with each rate, warmup, rewinding and end of the dense training, and each seed.

    Raises:
        UsageError: A training would have no epoch left, or the dense one would be stopped too early or too late.
    """
    epochs = common.chosen_recipe(options)["epochs"]
    for name in ("rewind", "warmup"):
        longest = max(getattr(options, f"{name}_epochs"))
        if longest >= epochs:
            raise UsageError(f"--{name}-epochs {longest} leaves nothing of {epochs} epochs; choose fewer")
    dense = options.dense_epochs or [epochs]
    if max(dense) > epochs:
        raise UsageError(f"--dense-epochs {max(dense)} is more than the {epochs} epochs of --epochs; choose fewer")
    if min(dense) < max(options.rewind_epochs):
        raise UsageError(
            f"--dense-epochs {min(dense)} ends before epoch {max(options.rewind_epochs)}, whose weights "
            "--rewind-epochs asks for; choose more dense epochs or rewind further"
        )
    return [
        {
            "model": plain["model"],
            "method": plain["method"],
            "lr": rate,
            "warmup_epochs": warm,
            "rewind_epochs": rewind,
            "dense_epochs": stop,
            "seed": plain["seed"],
        }
        for plain in common.chosen_cases(options, MODELS, QUICK_MODELS)
        for rate in ([ADAM_RATE] if plain["model"] == LENET else options.lr)
        for warm in options.warmup_epochs
        for rewind in options.rewind_epochs
        for stop in dict.fromkeys(dense)
    ]


def _recipe(options: argparse.Namespace, case: Case) -> Recipe:
    return Recipe(
        **{**common.chosen_recipe(options), **{name: case[name] for name in SETTINGS}},
        fraction=options.fraction,
        rounds=options.rounds or (1 if options.quick else 8),
        structure=options.structure,
        scope=options.scope,
        controls=CHOSEN.get(options.controls, CONTROLS),
        init_steps=common.chosen_init_steps(options),
    )
