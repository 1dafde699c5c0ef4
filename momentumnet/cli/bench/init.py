"""``momentumnet bench init``: how well networks train after one epoch and at best, by how they were initialised."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from momentumnet.cli import arguments
from momentumnet.cli.bench import cifar_networks, cifar_options, cifar_rows
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.cifar_rows import Case
from momentumnet.cli.bench.init_methods import METHODS
from momentumnet.cli.bench.init_training import Recipe, Training
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

MODELS, QUICK_MODELS = "resnet20,resnet20_bn,vgg8,vgg8_bn", "resnet8,resnet8_bn"
DESCRIPTION = f"""\
Train networks from each initialisation and each seed, and compare Acc_1, the test accuracy after the first epoch, with
Acc_best, that of the best epoch (table 1 of GradInit, Zhu et al., NeurIPS 2021).

models: {cifar_networks.NAMES}

methods, each on top of Kaiming's initialisation:
  kaiming    nothing else
  constant   one more epoch before the schedule, at the constant learning rate
  warmup     one more epoch before the schedule, whose learning rate rises from zero
  metainit   momentumnet.init.metainit_
  gradinit   momentumnet.init.gradinit_
  fixup      momentumnet.init.fixup_, which takes batch normalisation out of *_bn"""
EPILOG = """\
examples:
  momentumnet bench init
  momentumnet bench init --models resnet110,resnet110_bn --data cifar10 --epochs 200 --seeds 4
  momentumnet bench init --data cifar10_small.npz --train-samples 4000 --init-steps 100

Each row (model, method, seed) is written as soon as it is done: the same command goes on where the last one ended, and
more models, methods or seeds are added to what is there. Writes init-DATA.json and init-DATA.md to --output."""


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "init",
        summary="accuracy after one epoch and at best, by initialisation",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    cifar_options.add_options(command, models=MODELS, methods=METHODS)
    command.add_argument(
        "--init-steps",
        type=arguments.positive,
        metavar="N",
        help="steps of metainit and gradinit (default: 500 and 390, as in their papers; with --quick 2)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: The images cannot be used, or the results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    data, recipe = cifar_options.chosen_images(options), _recipe(options)
    results = Results.begin(
        options.output / f"init-{data.name}.json",
        command="bench init",
        device=device,
        settings=cifar_options.settings(data, recipe),
        resume=not options.restart,
        anew="add --restart to forget it",
    )
    cases = _cases(options)

    def training(case: Case) -> Training:
        return Training(case["model"], METHODS[case["method"]], case["seed"], data, recipe, device)

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
    return Recipe(
        epochs=cifar_options.chosen_epochs(options),
        batch_size=options.batch_size,
        lr=options.lr,
        init_steps=options.init_steps or (2 if options.quick else None),
    )


def _show(cases: Sequence[Case], results: Results, report: Report) -> None:
    """The table of all rows that are there, those of this call first and in its order."""
    cifar_rows.sort_rows(results, cases)
    table = _table(results.rows, results.header["settings"])
    table.show(report)
    write_markdown(results.path.with_suffix(".md"), [table], results.header)
    report.line(f"Written: {results.path}, and .md beside it")
    report.result(results.values())


def _named(row: Row) -> str:
    return f"{row['model']}, {row['method']}"


def _outcome(row: Row) -> str:
    return f"Acc_1 {row['acc_1']:.2f}, Acc_best {row['acc_best']:.2f}, {row['seconds']:.0f} s"


def _table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    groups = cifar_rows.groups(rows, "model", "method")
    models = [model for model, _ in groups]
    cells = []
    for index, ((model, method), own) in enumerate(groups.items()):
        shown = model if index == 0 or models[index - 1] != model else ""
        cells.append((shown, method, *_figures(own)))
    notes = [
        cifar_options.described(settings),
        "Test accuracy (%): mean and standard deviation over the seeds. Acc_1: after the first epoch of the schedule, "
        "which for constant and warmup is the second one of the training.",
        *cifar_rows.failures(rows, _named),
    ]
    columns = ("model", "method", "Acc_1", "Acc_best", "seeds", "initialisation", "row")
    return Table("Accuracy by initialisation", columns, cells, notes=notes)


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    """Accuracies of the rows that came to their end, how many did, and times."""
    done = cifar_rows.done(rows)
    if not done:
        return ("fails", "fails", cifar_rows.seeds(rows), "", "")
    accuracies = [cifar_rows.mean([row[key] for row in done]) for key in ("acc_1", "acc_best")]
    times = [f"{statistics.mean(row[key] for row in done):.1f} s" for key in ("init_seconds", "seconds")]
    return (*accuracies, cifar_rows.seeds(rows), *times)
