"""``momentumnet bench init``: how well networks train after one epoch and at best, by how they were initialised."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from momentumnet.cli import arguments
from momentumnet.cli.bench import cifar_networks
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.cifar_images import ImageData, load_cifar10, load_digits, load_npz
from momentumnet.cli.bench.init_methods import METHODS
from momentumnet.cli.bench.init_training import CLIP, MOMENTUM, WEIGHT_DECAY, Recipe, Training
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.errors import CommandError

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

Case = dict[str, Any]  # model, method, seed

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
    command.add_argument("--models", type=_models, metavar="NAME,...", help=f"(default: {MODELS})")
    command.add_argument(
        "--methods", type=_methods, default=",".join(METHODS), metavar="NAME,...", help="(default: %(default)s)"
    )
    command.add_argument(
        "--data",
        type=_data,
        default="digits",
        metavar="digits|cifar10|FILE.npz",
        help="a file holds x_train, y_train, x_test, y_test, images uint8 (N, 32, 32, 3) (default: %(default)s)",
    )
    for name, meaning in (("train", "training"), ("test", "test")):
        command.add_argument(
            f"--{name}-samples",
            type=arguments.positive,
            metavar="N",
            help=f"number of {meaning} images, drawn by chance, always the same ones (default: all)",
        )
    _add_training(command)
    command.add_argument("--restart", action="store_true", help="forget the rows that --output holds")
    command.set_defaults(run=run)


def _add_training(command: argparse.ArgumentParser) -> None:
    command.add_argument("--epochs", type=arguments.positive, metavar="N", help="(default: 10; with --quick 1)")
    command.add_argument(
        "--seeds", type=arguments.positive, metavar="N", help="seeds 0, ..., N - 1 (default: 3; with --quick 1)"
    )
    command.add_argument(
        "--batch-size", type=arguments.positive, default=128, metavar="N", help="(default: %(default)s)"
    )
    command.add_argument(
        "--lr", type=arguments.learning_rate, default=0.1, metavar="R", help="largest one (default: %(default)s)"
    )
    command.add_argument(
        "--init-steps",
        type=arguments.positive,
        metavar="N",
        help="steps of metainit and gradinit (default: 500 and 390, as in their papers; with --quick 2)",
    )


def _models(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        try:
            cifar_networks.parse(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names


def _methods(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is not a method; there are {', '.join(METHODS)}")
    return names


def _data(text: str) -> str:
    if text not in ("digits", "cifar10") and not (text.endswith(".npz") and Path(text).is_file()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither digits, cifar10 nor a .npz file that exists")
    return text


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: The images cannot be used, or the results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    data, recipe = _images(options), _recipe(options)
    if len(data.x_train) < recipe.batch_size:
        raise CommandError(f"{len(data.x_train)} training images are less than one batch of {recipe.batch_size}")
    results = Results.begin(
        options.output / f"init-{data.name}.json",
        command="bench init",
        device=device,
        settings=_settings(data, recipe),
        resume=not options.restart,
        anew="add --restart to forget it",
    )
    cases = _cases(options)
    try:
        _train(cases, results, data, recipe, device, report)
    except KeyboardInterrupt:
        report.line(f"Interrupted: the same command goes on after the rows that are done, in {results.path}.")
        raise
    _show(cases, results, report)


def _train(
    cases: Sequence[Case], results: Results, data: ImageData, recipe: Recipe, device: torch.device, report: Report
) -> None:
    """Adds the rows that are missing."""
    missing = [case for case in cases if not results.holds(**case)]
    if len(missing) < len(cases):
        report.line(f"{len(cases) - len(missing)} of {len(cases)} rows are done already, in {results.path}")
    with report.progress() as progress:
        rows = progress.add_task("rows", total=len(missing))
        for case in missing:
            label = f"{case['model']}, {case['method']}, seed {case['seed']}"
            training = Training(case["model"], METHODS[case["method"]], case["seed"], data, recipe, device)
            task = progress.add_task(label, total=training.epochs)
            row = training.row(lambda task=task: progress.advance(task))  # type: ignore[misc]
            results.add([{**case, **row}])
            progress.remove_task(task)
            progress.advance(rows)
            report.line(f"{label}: {_outcome(row)}")


def _cases(options: argparse.Namespace) -> list[Case]:
    models = options.models or _models(QUICK_MODELS if options.quick else MODELS)
    seeds = range(options.seeds or (1 if options.quick else 3))
    return [
        {"model": model, "method": method, "seed": seed}
        for model in dict.fromkeys(models)
        for method in dict.fromkeys(options.methods)
        for seed in seeds
    ]


def _images(options: argparse.Namespace) -> ImageData:
    try:
        if options.data == "digits":
            data = load_digits()
        else:
            data = load_cifar10() if options.data == "cifar10" else load_npz(Path(options.data))
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    few = 256 if options.quick else None
    return data.part(train=options.train_samples or few, test=options.test_samples or few)


def _recipe(options: argparse.Namespace) -> Recipe:
    quick = options.quick
    return Recipe(
        epochs=options.epochs or (1 if quick else 10),
        batch_size=options.batch_size,
        lr=options.lr,
        init_steps=options.init_steps or (2 if quick else None),
    )


def _settings(data: ImageData, recipe: Recipe) -> dict[str, Any]:
    return {
        "data": data.name,
        "images": list(data.x_train.shape[1:]),
        "train_samples": len(data.x_train),
        "test_samples": len(data.x_test),
        "augmented": data.augmented,
        **vars(recipe),
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
    }


def _show(cases: Sequence[Case], results: Results, report: Report) -> None:
    """The table of all rows that are there, those of this call first and in its order."""
    order = {tuple(case.values()): index for index, case in enumerate(cases)}
    results.rows.sort(key=lambda row: order.get((row["model"], row["method"], row["seed"]), len(order)))
    table = _table(results.rows, results.header["settings"])
    table.show(report)
    write_markdown(results.path.with_suffix(".md"), [table], results.header)
    report.line(f"Written: {results.path}, and .md beside it")
    report.result(results.values())


def _outcome(row: Row) -> str:
    if "error" in row:
        return str(row["error"])
    return f"Acc_1 {row['acc_1']:.2f}, Acc_best {row['acc_best']:.2f}, {row['seconds']:.0f} s"


def _table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"]), []).append(row)
    models = [model for model, _ in groups]
    cells = []
    for index, ((model, method), own) in enumerate(groups.items()):
        shown = model if index == 0 or models[index - 1] != model else ""
        cells.append((shown, method, *_figures(own)))
    failed: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if "error" in row:
            failed.setdefault((row["model"], row["method"], row["error"]), []).append(str(row["seed"]))
    notes = [
        f"{settings['data']}, {settings['train_samples']} training and {settings['test_samples']} test images of "
        f"{settings['images'][1]} x {settings['images'][2]}; epochs: {settings['epochs']}; SGD, batch "
        f"{settings['batch_size']}, momentum {settings['momentum']}, learning rate {settings['lr']} falling as a "
        f"cosine, weight decay {settings['weight_decay']:g}; without batch normalisation gradients are clipped at norm "
        f"{settings['clip']:g} and biases learn at a tenth of the rate.",
        "Test accuracy (%): mean and standard deviation over the seeds. Acc_1: after the first epoch of the schedule, "
        "which for constant and warmup is the second one of the training.",
        *(
            f"{model}, {method}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}: {error}"
            for (model, method, error), seeds in failed.items()
        ),
    ]
    columns = ("model", "method", "Acc_1", "Acc_best", "seeds", "initialisation", "row")
    return Table("Accuracy by initialisation", columns, cells, notes=notes)


def _figures(rows: Sequence[Row]) -> tuple[str, ...]:
    """Accuracies of the rows that came to their end, how many did, and times."""
    done = [row for row in rows if "error" not in row]
    if not done:
        return ("fails", "fails", f"0 of {len(rows)}", "", "")
    seeds = str(len(done)) if len(done) == len(rows) else f"{len(done)} of {len(rows)}"
    times = [f"{statistics.mean(row[key] for row in done):.1f} s" for key in ("init_seconds", "seconds")]
    return (*(_mean([row[key] for row in done]) for key in ("acc_1", "acc_best")), seeds, *times)


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"
