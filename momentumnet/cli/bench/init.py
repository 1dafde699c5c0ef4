"""``momentumnet bench init``: how well networks train after one epoch and at best, by how they were initialised."""

from __future__ import annotations

import argparse
from typing import Any

from momentumnet.bench.init.methods import METHODS
from momentumnet.bench.init.table import named, outcome, table
from momentumnet.bench.init.training import Recipe, Training
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings.recipe import settings
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, chosen_device

MODELS, QUICK_MODELS = "resnet20,resnet20_bn,vgg8,vgg8_bn", "resnet8,resnet8_bn"
TEXT = CommandText(
    "accuracy after one epoch and at best, by initialisation",
    f"""\
Train networks from each initialisation and each seed, and compare Acc_1, the test accuracy after the first epoch, with
Acc_best, that of the best epoch (table 1 of GradInit, Zhu et al., NeurIPS 2021).

models: {cifar_networks.NAMES}

methods, each on top of Kaiming's initialisation:
  kaiming    nothing else
  constant   one more epoch before the schedule, at the constant learning rate
  warmup     one more epoch before the schedule, whose learning rate rises from zero
  metainit   momentumnet.init.metainit_
  gradinit   momentumnet.init.gradinit_
  fixup      momentumnet.init.fixup_, which takes batch normalisation out of *_bn""",
    """\
examples:
  momentumnet bench init
  momentumnet bench init --models resnet110,resnet110_bn --data cifar10 --epochs 200 --seeds 4
  momentumnet bench init --data cifar10_small.npz --train-samples 4000 --init-steps 100

Each row (model, method, seed) is written as soon as it is done: the same command goes on where the last one ended, and
more models, methods or seeds are added to what is there. Writes init-DATA.json and init-DATA.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "init", TEXT, run)
    common.add_options(command, models=MODELS, methods=METHODS)
    common.add_init_steps(
        command, "steps of metainit and gradinit (default: 500 and 390, as in their papers; with --quick 2)"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The images cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.cli.report import Report

    report, device, data = Report.of(options), chosen_device(options), common.chosen_images(options)
    recipe = Recipe(**common.chosen_recipe(options), init_steps=common.chosen_init_steps(options))
    results = trainings.begin(options, "bench init", f"init-{data.name}", settings(data, recipe), device)

    def training(case: Case) -> Training:
        return Training(case["model"], case["seed"], data, recipe, device, METHODS[case["method"]])

    cases = common.chosen_cases(options, MODELS, QUICK_MODELS)
    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, [table(results.rows, results.header["settings"])])
