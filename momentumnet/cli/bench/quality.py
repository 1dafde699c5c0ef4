"""``momentumnet bench quality``: accuracy, memory and time against depth, of networks and their Momentum ResNets."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from momentumnet.bench.quality import tasks
from momentumnet.bench.quality.tables import ACCURACY, LOSS, MEMORY, Score, named, outcome, panels, table
from momentumnet.bench.quality.tasks import ADAM_DECAY, ImageTask, Recipe, Task, TextTask
from momentumnet.bench.quality.texts import load_text
from momentumnet.bench.quality.training import Training
from momentumnet.bench.quality.variants import LARGE, RAMP, SMALL, VARIANTS
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings import recipe as shared
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark, capped
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_choice, add_count, chosen_device
from momentumnet.command_errors import UsageError
from momentumnet.prune.lottery.trainings import Trainings

IMAGES, TEXT_TASK = "images", "text"
MODELS = {IMAGES: "resnet20_bn,resnet32_bn,resnet56_bn,vit6x32,vit12x32", TEXT_TASK: "gpt2x32,gpt4x32,gpt8x32"}
QUICK_MODELS = {IMAGES: "resnet14_bn,vit2x16", TEXT_TASK: "gpt2x16,gpt4x16"}
QUICK_CHARACTERS = 10_000
TEXT = CommandText(
    "accuracy, memory and time against depth, original and converted",
    """\
Train networks of several depths, and Momentum ResNets made of them: test accuracy, or validation loss on a text, peak
memory of a training step, and time of an epoch against depth.

models for images: resnetN and resnetN_bn with N = 6 n + 2 layers (20, 32, 44, 56, 110), vitN with N blocks of 192
features, vitNxWIDTH; for text: gptN with N blocks of 256 features, gptNxWIDTH

methods:
  original    the network itself
  scratch     a Momentum ResNet from scratch, gamma 0.9
  continued   the trained original, trained on: what the next two are to be compared with
  converted   the trained original, converted at gamma 1/8, trained on
  scheduled   the trained original, converted, gamma from 1/8 up to 0.9 while it is trained on""",
    """\
examples:
  momentumnet bench quality
  momentumnet bench quality --data cifar10 --models resnet20_bn,resnet110_bn,vit12 --epochs 160 --lr 0.1
  momentumnet bench quality --task text --text book.txt --models gpt6,gpt12,gpt24 --length 256

Each row (model, method, seed) is written as soon as it is done: the same command goes on where the last one ended, and
more models, methods or seeds are added to what is there. Writes quality-DATA.json, .md and .png to --output. The
weights of the trained originals lie in a folder beside them, which may be deleted when the rows are done.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "quality", TEXT, run)
    models = f"{MODELS[IMAGES]}; for text {MODELS[TEXT_TASK]}"
    common.add_options(command, models=models, methods=VARIANTS, parse=tasks.parse, lr=0.02)
    command.set_defaults(batch_size=64)
    group = command.add_argument_group("text")
    add_choice(group, "--task", tuple(MODELS), "what the networks are trained on")
    group.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text (default: Python's language reference)")
    add_count(group, "--length", 64, "characters of a window")
    add_count(group, "--characters", 100_000, "use no more of the text")
    group = command.add_argument_group("transformers, and what begins with trained weights")
    rate = "learning rate of transformers, by AdamW (default: %(default)s)"
    group.add_argument("--adam-lr", type=arguments.learning_rate, default=0.003, metavar="R", help=rate)
    epochs = "epochs after the original's (default: half as many)"
    group.add_argument("--finetune-epochs", type=arguments.positive, metavar="N", help=epochs)
    scale = "their learning rate, of that of a training (default: %(default)s)"
    group.add_argument("--finetune-scale", type=arguments.learning_rate, default=0.3, metavar="F", help=scale)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: Images, text, networks or options cannot be used.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.reporting.plots import plot_seeds
    from momentumnet.cli.report import Report

    cases = common.chosen_cases(options, MODELS[options.task], QUICK_MODELS[options.task])
    _check(options, cases)
    report, recipe = Report.of(options), _recipe(options)
    task, settings, score = _task(options, recipe)
    own = {**settings, "gammas": [str(SMALL), str(LARGE)], "ramp": RAMP, "adam_weight_decay": ADAM_DECAY}
    name = f"quality-{own['data']}"
    results = trainings.begin(options, "bench quality", name, own, chosen_device(options))
    folder = options.output / f"{name}-originals"
    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]  # other settings have other weights
    originals = Trainings(folder / digest, own)

    def training(case: Case) -> Training:
        return Training(task, case["model"], case["seed"], recipe, VARIANTS[case["method"]], originals)

    def plot(rows: Sequence[Row], path: Path) -> None:
        drawn = list(panels(rows, score))
        labels = {heading: axes for heading, axes, _ in drawn}
        lines = {heading: lines for heading, _, lines in drawn}
        memory = [heading for heading, (_, y) in labels.items() if y == MEMORY]
        title = f"Quality and memory against depth, {own['data']}"
        plot_seeds(lines, path, title=title, labels=labels, from_zero=memory)

    trainings.train_missing(cases, results, training, named=named, outcome=partial(outcome, score=score), report=report)
    finish(report, results, [table(results.rows, own, score)], plot)


def _check(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Refuses options of the other task.

    Raises:
        UsageError: There are some.
    """
    on_text = options.task == TEXT_TASK
    parse = tasks.parse_decoder if on_text else tasks.parse_image_network
    for case in cases:
        try:
            parse(case["model"])
        except ValueError as error:
            raise UsageError(f"--task {options.task}: {error}") from error
    if options.text is not None and not on_text:
        raise UsageError(f"--text {options.text} is read with --task {TEXT_TASK} only; add that, or leave --text out")
    if on_text and options.data != "digits":
        raise UsageError(f"--data {options.data} holds images; with --task {TEXT_TASK} give --text FILE")


def _recipe(options: argparse.Namespace) -> Recipe:
    own = common.chosen_recipe(options)
    finetune = options.finetune_epochs or max(1, own["epochs"] // 2)
    return Recipe(**own, adam_lr=options.adam_lr, finetune_epochs=finetune, finetune_scale=options.finetune_scale)


def _task(options: argparse.Namespace, recipe: Recipe) -> tuple[Task, dict[str, Any], Score]:
    """What is trained on, with its settings and what counts.

    Raises:
        UsageError: It cannot be read, or is less than a batch.
    """
    device = chosen_device(options)
    if options.task == IMAGES:
        data = common.chosen_images(options)
        return ImageTask(data, recipe, device), shared.settings(data, recipe), ACCURACY
    capped(options, characters=QUICK_CHARACTERS)
    try:
        text = load_text(options.text, length=options.length, most=options.characters)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if len(text.x_train) < recipe.batch_size:
        raise UsageError(
            f"{len(text.x_train)} windows of {options.length} characters are less than one batch of "
            f"{recipe.batch_size}; give a longer text, more --characters, or a smaller --batch-size"
        )
    return TextTask(text, recipe, device), tasks.text_settings(text, recipe), LOSS
