"""``momentumnet bench init-text``: how decoders train on text by initialisation, and what initialisations cost."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from momentumnet.bench.init_text.cases import (
    COST,
    SEARCH,
    SEARCH_SEED,
    chosen,
    curve_cases,
    optimizer_cases,
    search_cases,
)
from momentumnet.bench.init_text.characters import TextData, load_python_topics, load_text
from momentumnet.bench.init_text.costs import costs
from momentumnet.bench.init_text.methods import ADAM, METHODS, SGD, Choice, Grid, suits
from momentumnet.bench.init_text.networks import NETWORKS, POST
from momentumnet.bench.init_text.tables import named, outcome, tables
from momentumnet.bench.init_text.training import VALIDATION_WINDOWS, Recipe, Training
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings.recipe import MOMENTUM
from momentumnet.cli import arguments
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark, add_repeats, capped, chosen_repeats
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import DEFAULT, CommandText, add_count, chosen_device
from momentumnet.command_errors import UsageError

PARTS = ("curves", "optimizers", "cost")
TEXT = CommandText(
    "transformers on text by initialisation, without warmup; cost of GradInit and MetaInit",
    """\
Train a small decoder of characters with Adam and without clipping, and compare the validation loss by initialisation.

parts:
  curves      each network, method and learning rate from each seed; loss curves
  optimizers  the post-norm decoder, initialised by GradInit for SGD or for Adam, trained with SGD or with Adam
  cost        seconds and memory of an iteration of GradInit and MetaInit, on a ResNet and on the decoder

networks: post-norm, pre-norm, and norm-free, which is post-norm without its norms, for tfixup alone

methods:
  plain      PyTorch's weights
  warmup     the same, and the rate rises from zero in the first of the steps
  gradinit   momentumnet.init.gradinit_
  metainit   momentumnet.init.metainit_
  tfixup     momentumnet.init.tfixup_, which takes the norms out

Of --taus, --etas, --falls and --metainit-taus those are taken that do best in a short training from another seed.""",
    """\
examples:
  momentumnet bench init-text
  momentumnet bench init-text curves --text book.txt --rates 3e-4,1e-3,3e-3 --seeds 5
  momentumnet bench init-text --depth 24 --width 256 --length 256 --batch-size 64 --steps 5000 --warmup-steps 500

The text is that of Python's help() unless --text names one; its last tenth is for validation. Each row is written as
soon as it is done: the same command goes on where the last one ended, and more networks, methods or seeds are added to
what is there. Writes init-text-NAME.json, .md and .png to --output.""",
)
COUNTS = {
    "depth": (12, "layers"),
    "width": (64, "features of a token"),
    "length": (32, "characters of a sequence"),
    "batch-size": (8, "sequences in a batch"),
    "steps": (120, "of a training"),
    "warmup-steps": (40, "those of them in which warmup raises the rate"),
    "init-steps": (30, "of metainit and gradinit"),
    "search-steps": (50, "of a training in the search"),
    "seeds": (3, "seeds 0, ..., N - 1"),
}
RATES, SGD_RATE, TAUS, ETAS = "1e-3,3e-3", 0.02, "0.01,0.03", "0.1,1"
FALLS, METAINIT_TAUS = "0.1,10", "0.001,0.01,0.1"


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "init-text", TEXT, run)
    command.add_argument("parts", nargs="*", type=_part, default=PARTS, metavar="|".join(PARTS), help="(default: all)")
    add_repeats(command)
    command.add_argument("--restart", action="store_true", help="forget the rows that --output holds")
    compared = command.add_argument_group("text, networks and methods")
    compared.add_argument("--text", type=Path, metavar="FILE", help="in UTF-8 (default: that of Python's help())")
    for name, known in (("networks", NETWORKS), ("methods", METHODS)):
        compared.add_argument(
            f"--{name}", type=_among(known), default=",".join(known), metavar="NAME,...", help=DEFAULT
        )
    training = command.add_argument_group("training")
    meaning = f"learning rates of Adam {DEFAULT}"
    training.add_argument("--rates", type=arguments.learning_rates, default=RATES, metavar="R,...", help=meaning)
    training.add_argument(
        "--sgd-rate", type=arguments.learning_rate, default=SGD_RATE, metavar="R", help=f"of SGD {DEFAULT}"
    )
    training.add_argument(
        "--clip", type=arguments.learning_rate, metavar="NORM", help="largest norm of the gradient (default: none)"
    )
    for name, (count, meaning) in COUNTS.items():
        add_count(training, f"--{name}", count, meaning)
    search = command.add_argument_group("search")
    for name, default, meaning in (
        ("taus", TAUS, "learning rates of GradInit's scales that are tried"),
        ("etas", ETAS, "inner steps of GradInit that are tried, times the training's rate"),
        ("falls", FALLS, "falls of the loss in GradInit's inner step, to first order, by which its bound is tried"),
        ("metainit-taus", METAINIT_TAUS, "learning rates of MetaInit's norms that are tried"),
    ):
        search.add_argument(
            f"--{name}", type=arguments.learning_rates, default=default, metavar="R,...", help=f"{meaning} {DEFAULT}"
        )


def _part(text: str) -> str:
    # Not by ``choices``: with them argparse refuses the default of a list.
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(PARTS)}")
    return text


def _among(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return list(dict.fromkeys(text.split(",")))

    return names


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The text cannot be used, or options do not go together.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.init_text.plot import plot
    from momentumnet.cli.report import Report

    _shrink(options)
    report, device, text, recipe = Report.of(options), chosen_device(options), _text(options), _recipe(options)
    grid = Grid(options.taus, options.etas, options.falls, options.metainit_taus)
    rates = {ADAM: max(options.rates), SGD: options.sgd_rate}
    settings = _settings(options, text, recipe, grid, rates)
    results = trainings.begin(options, "bench init-text", f"init-text-{text.name}", settings, device)

    def training(case: Case) -> Training:
        searching = case["part"] == SEARCH
        own = replace(recipe, steps=options.search_steps) if searching else recipe
        choice = Choice.of(case) if searching else chosen(results.rows, case, grid)
        return Training(case, text, own, device, choice, rates.get(case["init_for"]))

    cases = _cases(options, rates)
    for part in filter(None, (search_cases(cases, grid, rates), cases)):
        trainings.train_missing(part, results, training, named=named, outcome=outcome, report=report)
    if "cost" in options.parts and not results.holds(part=COST):
        for rows in costs(recipe, len(text.characters), device, repeats=chosen_repeats(options)):
            results.add(rows)
            report.remark(f"cost: {rows[0]['network']}")

    def draw(rows: Sequence[Row], path: Path) -> None:
        plot(rows, settings["frequency_loss"], path)

    finish(report, results, tables(results.rows, results.header["settings"]), draw)


def _shrink(options: argparse.Namespace) -> None:
    """With ``--quick``: two layers, few steps, one seed, the first of each list."""
    capped(options, depth=2, width=32, length=16, batch_size=4, steps=6, search_steps=3, init_steps=2, seeds=1)
    capped(options, warmup_steps=2)
    if options.quick:
        for name in ("rates", "taus", "etas", "falls", "metainit_taus"):
            setattr(options, name, getattr(options, name)[: 1 if name in ("etas", "falls") else 2])


def _text(options: argparse.Namespace) -> TextData:
    try:
        text = load_python_topics() if options.text is None else load_text(options.text)
        text.check_length(options.length)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    return text


def _recipe(options: argparse.Namespace) -> Recipe:
    if options.warmup_steps >= options.steps:
        raise UsageError(
            f"--warmup-steps {options.warmup_steps} are among the --steps {options.steps} of a training and have to be "
            "fewer"
        )
    names = ("depth", "width", "length", "batch_size", "steps", "warmup_steps", "init_steps", "clip")
    return Recipe(**{name: getattr(options, name) for name in names})


def _cases(options: argparse.Namespace, rates: dict[str, float]) -> list[Case]:
    own = range(options.seeds)
    pairs = [(network, method) for network in options.networks for method in options.methods]
    if "curves" in options.parts and not any(suits(*pair) for pair in pairs):
        raise UsageError(
            f"none of --methods {','.join(options.methods)} is for --networks {','.join(options.networks)}: tfixup is "
            "for norm-free, which it makes, the others for post-norm and pre-norm"
        )
    cases = curve_cases(options.networks, options.methods, options.rates, own) if "curves" in options.parts else []
    if "optimizers" in options.parts:
        cases += [case for case in optimizer_cases(POST, rates, own) if case not in cases]
    return cases


def _settings(
    options: argparse.Namespace, text: TextData, recipe: Recipe, grid: Grid, rates: dict[str, float]
) -> dict[str, Any]:
    """What makes the rows comparable."""
    return {
        "text": text.name,
        "source": text.source,
        "sha256": text.digest,
        "train_characters": len(text.train),
        "validation_characters": len(text.validation),
        "alphabet": len(text.characters),
        "frequency_loss": text.frequency_loss(recipe.length, VALIDATION_WINDOWS),
        "validation_windows": VALIDATION_WINDOWS,
        **vars(recipe),
        "momentum": MOMENTUM,
        **vars(grid),
        "search_rates": rates,
        "search_steps": options.search_steps,
        "search_seed": SEARCH_SEED,
    }
