"""``momentumnet bench sam``: accuracy and flatness by optimizer, with right labels and with wrong ones."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from momentumnet.cli import arguments
from momentumnet.cli.bench import cifar_networks, cifar_options, cifar_rows
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.cifar_rows import Case
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.sam_methods import METHODS, Recipe
from momentumnet.cli.bench.sam_training import PROBES, RADIUS, Training

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

MODELS, QUICK_MODELS = "resnet20_bn", "resnet8_bn"
NOISE = "0,20,40,60"
DESCRIPTION = f"""\
Train networks with each optimizer, each share of wrong training labels and each seed. Compare test accuracy, the
sharpness of the loss at the end (Foret et al., ICLR 2021) and the largest eigenvalue of its Hessian.

models: {cifar_networks.NAMES}

methods, each on top of SGD with momentum:
  sgd             nothing else: one pass a step
  sgd_2x          twice the epochs, so as many passes as the methods below
  extragradient   momentumnet.optim.Extragradient: two passes a step
  sam             momentumnet.optim.SAM: two passes a step
  asam            adaptive SAM, biases not scaled: two passes a step"""
EPILOG = """\
examples:
  momentumnet bench sam
  momentumnet bench sam --models resnet32_bn --data cifar10 --epochs 200 --noise 0,20,40,60,80
  momentumnet bench sam --data cifar10_small.npz --train-samples 4000 --methods sgd_2x,sam

Each row (model, noise, method, seed) is written as soon as it is done: the same command goes on where the last one
ended, and more models, noise, methods or seeds are added to what is there. Writes sam-DATA.json, .md and .png to
--output."""


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "sam",
        summary="accuracy and sharpness by optimizer, with wrong labels too",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    cifar_options.add_options(command, models=MODELS, methods=METHODS)
    command.add_argument(
        "--noise",
        type=_percentages,
        default=NOISE,
        metavar="P,...",
        help="percent of training labels that are wrong (default: %(default)s)",
    )
    for name, rho, method in (("rho", 0.05, "sam"), ("asam-rho", 0.5, "asam")):
        command.add_argument(
            f"--{name}",
            type=arguments.radius,
            default=rho,
            metavar="R",
            help=f"radius of {method} (default: %(default)s)",
        )
    command.set_defaults(run=run)


def _percentages(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; write for example {NOISE}") from None
    for value in values:
        if not 0 <= value < 100:
            raise argparse.ArgumentTypeError(f"{value:g} is not at least 0 and less than 100 percent")
    return list(dict.fromkeys(values))


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: The images cannot be used, or the results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    data = cifar_options.chosen_images(options)
    recipe = Recipe(cifar_options.chosen_epochs(options), options.batch_size, options.lr, options.rho, options.asam_rho)
    results = Results.begin(
        options.output / f"sam-{data.name}.json",
        command="bench sam",
        device=device,
        settings=cifar_options.settings(data, recipe),
        resume=not options.restart,
        anew="add --restart to forget it",
    )
    cases: list[Case] = [
        {"model": model, "noise": noise, "method": method, "seed": seed}
        for model in cifar_options.chosen_models(options, MODELS, QUICK_MODELS)
        for noise in options.noise
        for seed in cifar_options.chosen_seeds(options)
        for method in options.methods  # which take turns: a machine that gets slower slows them all alike
    ]

    def training(case: Case) -> Training:
        return Training(case["model"], case["noise"], METHODS[case["method"]], case["seed"], data, recipe, device)

    cifar_rows.train_missing(cases, results, training, named=_named, outcome=_outcome, report=report)
    _show(cases, results, report)


def _named(row: Row) -> str:
    return f"{row['model']}, {row['noise']:g} % wrong labels, {row['method']}"


def _outcome(row: Row) -> str:
    return (
        f"accuracy {row['acc_final']:.2f}, best {row['acc_best']:.2f}, sharpness {row['sharpness']:.4f}, "
        f"eigenvalue {row['eigenvalue']:.2f}, {row['seconds']:.0f} s"
    )


def _curves(rows: Sequence[Row]) -> dict[str, dict[str, dict[float, list[float]]]]:
    """By network, by method and by share of wrong labels (%), the final accuracies of the seeds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row in cifar_rows.done(rows):
        lines = found.setdefault(row["model"], {})
        lines.setdefault(row["method"], {}).setdefault(row["noise"], []).append(row["acc_final"])
    return found


def _show(cases: Sequence[Case], results: Results, report: Report) -> None:
    """The tables of all rows that are there, those of this call first and in its order."""
    from momentumnet.cli.bench.plots import plot_accuracies

    cifar_rows.sort_rows(results, cases)
    tables = _tables(results.rows, results.header["settings"])
    for table in tables:
        table.show(report)
    write_markdown(results.path.with_suffix(".md"), tables, results.header)
    plot_accuracies(
        _curves(results.rows),
        results.path.with_suffix(".png"),
        title="Accuracy with wrong labels",
        x="wrong training labels, %",
    )
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


def _tables(rows: Sequence[Row], settings: dict[str, Any]) -> list[Table]:
    """One for each model and share of wrong labels; the notes stand below the last."""
    columns = ("method", "passes", "accuracy", "best", "sharpness", "eigenvalue", "step", "seeds")
    groups = cifar_rows.groups(rows, "model", "noise")
    tables = []
    for number, ((model, noise), own) in enumerate(groups.items(), start=1):
        methods = cifar_rows.groups(own, "method")
        reference = _step_seconds(methods.get(("sgd",), []))
        cells = [(method, *_figures(same, reference)) for (method,), same in methods.items()]
        notes = _notes(rows, settings) if number == len(groups) else []
        tables.append(Table(f"{model}, {noise:g} % of the training labels wrong", columns, cells, notes=notes, left=1))
    return tables


def _figures(rows: Sequence[Row], reference: float | None) -> tuple[str, ...]:
    """Passes, figures of the rows that came to their end, time of a step to ``reference``."""
    done = cifar_rows.done(rows)
    passes = str(rows[0]["passes"])
    if not done:
        return (passes, *["fails"] * 4, "", cifar_rows.seeds(rows))
    accuracies = [cifar_rows.mean([row[key] for row in done]) for key in ("acc_final", "acc_best")]
    flatness = [
        f"{statistics.mean(row[key] for row in done):{form}}"
        for key, form in (("sharpness", ".4f"), ("eigenvalue", ".2f"))
    ]
    seconds = _step_seconds(rows)
    step = "" if seconds is None or reference is None else f"{seconds / reference:.2f}"
    return (passes, *accuracies, *flatness, step, cifar_rows.seeds(rows))


def _step_seconds(rows: Sequence[Row]) -> float | None:
    """Of a step: median in each row, median of these."""
    seconds = [row["step_seconds"] for row in cifar_rows.done(rows)]
    return statistics.median(seconds) if seconds else None


def _notes(rows: Sequence[Row], settings: dict[str, Any]) -> list[str]:
    return [
        cifar_options.described(settings),
        f"rho {settings['rho']:g} for sam, {settings['asam_rho']:g} for asam. passes: forward and backward passes over "
        "the training images; sgd_2x has twice the epochs.",
        "Wrong labels: an exact share of the training labels, drawn by the seed, each made one of the other classes, "
        "all equally likely. Test labels are right.",
        "accuracy: on the test images (%) after the last epoch, best: after the best one; mean and standard deviation "
        "over the seeds. Of sharpness and eigenvalue the mean.",
        f"sharpness: rise of the training loss to the worst point found at distance {RADIUS:g}; eigenvalue: largest "
        f"one of the Hessian. Both at the end, in eval mode, on {min(PROBES, settings['train_samples'])} training "
        "images, always the same ones, not augmented, with the labels that were trained on.",
        "step: median time of a step, its passes included, to that of sgd in the same table.",
        *cifar_rows.failures(rows, _named),
    ]
