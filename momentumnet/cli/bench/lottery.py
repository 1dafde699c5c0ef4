"""``momentumnet bench lottery``: accuracy against sparsity, of lottery tickets and their two controls."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from momentumnet.cli import arguments
from momentumnet.cli.bench import cifar_networks, cifar_options, cifar_rows
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.cifar_rows import Case
from momentumnet.cli.bench.lottery_tables import accuracy_table, curves, early_table, final, speed_table, verdicts
from momentumnet.cli.bench.lottery_training import ADAM_RATE, INITIALISATIONS, Lottery, Recipe
from momentumnet.cli.bench.results import Results, Row, write_markdown
from momentumnet.cli.errors import CommandError

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

MODELS, QUICK_MODELS = "lenet300,resnet20_bn", "lenet300"
DESCRIPTION = f"""\
Find lottery tickets by iterative magnitude pruning (Frankle, Carbin, ICLR 2019), and train them beside two controls:
their masks on newly drawn weights, and their weights under random masks that are as sparse in each layer.

models: {cifar_networks.NAMES}

methods, the initialisation of the network and of the newly drawn weights:
  xavier    Glorot's, which the paper used
  kaiming   momentumnet.init.kaiming_
  gradinit  momentumnet.init.gradinit_, after Kaiming's"""
EPILOG = """\
examples:
  momentumnet bench lottery
  momentumnet bench lottery --models resnet20_bn --data cifar10 --epochs 160 --rewind-epochs 2 --rounds 12
  momentumnet bench lottery --models resnet20_bn --structure channel

Each row (model, method, seed) is written as soon as it is done, and each training inside of it too: the same command
goes on where the last one ended, and more models, methods or seeds are added to what is there. Writes
lottery-DATA.json, .md and .png to --output; with --structure, lottery-STRUCTURE-DATA. The trainings lie in a folder
beside them, which may be deleted when the rows are done."""


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "lottery",
        summary="accuracy of lottery tickets and controls by sparsity",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    cifar_options.add_options(command, models=MODELS, methods=INITIALISATIONS)
    command.add_argument(
        "--rounds", type=arguments.positive, metavar="N", help="number of prunings (default: 8; with --quick 1)"
    )
    command.add_argument(
        "--fraction",
        type=arguments.share,
        default=0.331,
        metavar="F",
        help="what a round takes of what is left (default: %(default)s, four rounds of which leave 20 %%)",
    )
    command.add_argument(
        "--rewind-epochs",
        type=arguments.whole,
        default=0,
        metavar="N",
        help="begin the tickets with the weights of this epoch (default: %(default)s, the first weights)",
    )
    command.add_argument(
        "--structure",
        choices=("weight", "channel", "block"),
        default="weight",
        help="what is taken away at a time (default: %(default)s)",
    )
    command.add_argument(
        "--scope",
        choices=("global", "layer"),
        default="global",
        help="compare the magnitudes of all layers, or of each (default: %(default)s)",
    )
    command.add_argument(
        "--init-steps", type=arguments.positive, metavar="N", help="steps of gradinit (default: 390; with --quick 2)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: The images or options cannot be used, or the results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    data, recipe = cifar_options.chosen_images(options), _recipe(options)
    name = f"lottery-{data.name}" if recipe.structure == "weight" else f"lottery-{recipe.structure}-{data.name}"
    settings = {**cifar_options.settings(data, recipe), "adam_lr": ADAM_RATE}
    results = Results.begin(
        options.output / f"{name}.json",
        command="bench lottery",
        device=device,
        settings=settings,
        resume=not options.restart,
        anew="add --restart to forget it",
    )
    cases, trainings = _cases(options), options.output / f"{name}-trainings"
    if options.restart:
        shutil.rmtree(trainings, ignore_errors=True)
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]  # other settings have other trainings

    def training(case: Case) -> Lottery:
        folder = trainings / "-".join([*map(str, case.values()), digest])
        return Lottery(case["model"], case["method"], case["seed"], data, recipe, device, folder)

    cifar_rows.train_missing(cases, results, training, named=_named, outcome=_outcome, report=report)
    _show(cases, results, report)


def _cases(options: argparse.Namespace) -> list[Case]:
    return [
        {"model": model, "method": method, "seed": seed}
        for model in cifar_options.chosen_models(options, MODELS, QUICK_MODELS)
        for method in options.methods
        for seed in cifar_options.chosen_seeds(options)
    ]


def _recipe(options: argparse.Namespace) -> Recipe:
    epochs = cifar_options.chosen_epochs(options)
    if options.rewind_epochs >= epochs:
        raise CommandError(f"--rewind-epochs {options.rewind_epochs} leaves nothing of {epochs} epochs; choose fewer")
    return Recipe(
        epochs=epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        fraction=options.fraction,
        rounds=options.rounds or (1 if options.quick else 8),
        rewind_epochs=options.rewind_epochs,
        structure=options.structure,
        scope=options.scope,
        init_steps=options.init_steps or (2 if options.quick else None),
    )


def _show(cases: Sequence[Case], results: Results, report: Report) -> None:
    """The tables of all rows that are there, those of this call first and in its order."""
    from momentumnet.cli.bench.plots import plot_accuracies

    cifar_rows.sort_rows(results, cases)
    settings = results.header["settings"]
    notes = [_described(settings), *cifar_rows.failures(results.rows, _named)]
    tables = [
        accuracy_table(results.rows, [*verdicts(results.rows), *notes]),
        speed_table(results.rows),
        early_table(results.rows),
    ]
    for table in tables:
        table.show(report)
    write_markdown(results.path.with_suffix(".md"), tables, results.header)
    title = f"Lottery tickets, {settings['data']}"
    plot_accuracies(curves(results.rows), results.path.with_suffix(".png"), title=title, x="weights gone, %")
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


def _described(settings: dict[str, Any]) -> str:
    begin = f"after epoch {settings['rewind_epochs']}" if settings["rewind_epochs"] else "at the beginning"
    return (
        f"{cifar_options.described(settings)} {cifar_networks.LENET} is trained with Adam, learning rate "
        f"{settings['adam_lr']}. A round takes {100 * settings['fraction']:g} % of the {settings['structure']}s that "
        f"are left ({settings['scope']}), by magnitude; tickets begin with the weights {begin}."
    )


def _named(row: Row) -> str:
    return f"{row['model']}, {row['method']}"


def _outcome(row: Row) -> str:
    last = row["trainings"][-1]
    own = [training for training in row["trainings"] if training["round"] == last["round"]]
    text = ", ".join(f"{training['arm']} {final(training):.2f}" for training in own)
    return f"at {100 * last['sparsity']:.1f} % sparsity: {text}; {row['seconds']:.0f} s"
