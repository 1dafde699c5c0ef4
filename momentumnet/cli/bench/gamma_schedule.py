"""``momentumnet bench gamma-schedule``: accuracy and memory by the final gamma, and by how slowly it is reached."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.bench.data.byte_windows import ByteWindows, windows
from momentumnet.bench.data.images import ImageData
from momentumnet.bench.data.texts import data_set_descriptions, python_topics, read_text
from momentumnet.bench.gamma_schedule.annealing import METHODS, Annealing
from momentumnet.bench.gamma_schedule.tables import named, outcome, tables
from momentumnet.bench.gamma_schedule.tasks import NAMES, ImageTask, Recipe, Task, TextTask, first_half, is_text, layers
from momentumnet.bench.gamma_schedule.training import Training
from momentumnet.bench.reporting.seeds import Case
from momentumnet.bench.trainings.recipe import settings
from momentumnet.cli import arguments
from momentumnet.cli.bench import training_options as common
from momentumnet.cli.bench import trainings
from momentumnet.cli.bench.options import add_benchmark, capped
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, add_count, chosen_device
from momentumnet.command_errors import UsageError
from momentumnet.schedules.step_schedule import SHAPES

MODELS, QUICK_MODELS = "resnet56_bn,decoder12", "resnet20_bn,decoder2"
FINALS, QUICK_FINALS = "0,1/8,1/2,3/4,9/10", "0,9/10"
LENGTHS, QUICK_LENGTHS = "0,1/4,1/2,1", "0,1"
PRETRAINING_EPOCHS, QUICK_BATCH = 10, 32
TEXT = CommandText(
    "accuracy and memory by final gamma and length of the schedule",
    f"""\
Fine-tune briefly pretrained networks while gamma goes from a value that keeps their function to the one whose memory is
wanted, or to 0 (momentumnet.schedule_gamma), at once or in a share of the steps. Compare accuracy, or validation loss,
and the peak memory of a step.

models: {NAMES}

methods:
  momentum   gamma, from --start to the final value
  dr2net     Dr2Net's coefficients (Zhao et al., CVPR 2024), from alpha 1 and beta 1/64 to 1 - beta and beta, the
             final value: as many bits a block as momentum at this gamma. In the --shape of the schedule: the
             authors' own rule of updates is not known here""",
    """\
examples:
  momentumnet bench gamma-schedule
  momentumnet bench gamma-schedule --models resnet56_bn --finals 0,9/10 --lengths 0,1
  momentumnet bench gamma-schedule --data cifar10 --epochs 50 --text wiki.txt --pretraining-text books.txt

Each row (model, method, final, length, seed) is written as soon as it is done: the same command goes on where the last
one ended, and more of any of them are added to what is there. Writes gamma-schedule-DATA.json, .md and .png to
--output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_benchmark(benchmarks, "gamma-schedule", TEXT, run)
    common.add_options(command, models=MODELS, methods=METHODS, parse=layers, lr=0.05)
    group = command.add_argument_group("schedules")
    group.add_argument(
        "--finals", type=_finals, metavar="G,...", help=f"(default: {FINALS}; with --quick {QUICK_FINALS})"
    )
    group.add_argument(
        "--lengths",
        type=_lengths,
        metavar="S,...",
        help="shares of the steps in which the rule changes; 0: at once "
        f"(default: {LENGTHS}; with --quick {QUICK_LENGTHS})",
    )
    group.add_argument(
        "--start", type=arguments.gamma, default=Fraction(1, 8), metavar="G", help="of momentum (default: %(default)s)"
    )
    group.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="linear",
        help="of the way from the start to the final value; geometric has none to 0 (default: %(default)s)",
    )
    group = command.add_argument_group("texts and pretraining")
    for flag, default in (
        ("--text", "what scikit-learn says of its data sets"),
        ("--pretraining-text", "Python's reference"),
    ):
        group.add_argument(flag, type=_file, metavar="FILE", help=f"of the decoders (default: {default})")
    add_count(group, "--window", 32, "bytes that a decoder sees at once")
    group.add_argument(
        "--text-lr", type=arguments.learning_rate, default=1e-3, metavar="R", help="of AdamW (default: %(default)s)"
    )
    group.add_argument(
        "--pretraining-epochs",
        type=arguments.positive,
        metavar="N",
        help=f"(default: {PRETRAINING_EPOCHS}; with --quick 1)",
    )


def _finals(text: str) -> list[str]:
    return list(dict.fromkeys(str(exact_gamma(gamma)) for gamma in arguments.gammas(text)))


def _lengths(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        try:
            share = Fraction(part)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"{part!r} is not a share; write for example {LENGTHS}") from None
        if not 0 <= share <= 1:
            raise argparse.ArgumentTypeError(f"{part} is not in [0, 1]: 0 is at once, 1 all steps")
        found.append(str(share))
    return list(dict.fromkeys(found))


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        UsageError: The data cannot be used, or no method has one of the final values.
        CheckpointError: The results in ``--output`` are of other settings.
    """
    from momentumnet.bench.gamma_schedule.plots import plot
    from momentumnet.cli.report import Report

    capped(options, batch_size=QUICK_BATCH)
    report, device, data = Report.of(options), chosen_device(options), _images(options)
    before, text = _texts(options)
    recipe = Recipe(
        **common.chosen_recipe(options),
        text_lr=options.text_lr,
        pretraining_epochs=options.pretraining_epochs or (1 if options.quick else PRETRAINING_EPOCHS),
    )
    start = exact_gamma(options.start)
    chosen = {**settings(data, recipe), "start": str(start), "window": options.window, **_described(before, text)}
    if options.shape != "linear":  # the settings of results from before there were others say nothing of it
        chosen["shape"] = options.shape
    results = trainings.begin(options, "bench gamma-schedule", f"gamma-schedule-{data.name}", chosen, device)
    tasks: dict[str, Task[Any]] = {
        model: _task(model, recipe, device, data, before, text)
        for model in common.chosen_models(options, MODELS, QUICK_MODELS)
    }

    def training(case: Case) -> Training:
        return Training(tasks[case["model"]], _annealing(case, start, options.shape), case["seed"])

    cases = _cases(options, start)
    trainings.train_missing(cases, results, training, named=named, outcome=outcome, report=report)
    finish(report, results, tables(results.rows, results.header["settings"]), plot)


def _cases(options: argparse.Namespace, start: Fraction) -> list[Case]:
    """Where the final value is the start, all lengths are one training: that at once.

    Raises:
        UsageError: There are none, or a geometric schedule would begin at 0.
    """
    if options.shape == "geometric" and not start:
        raise UsageError("--shape geometric multiplies gamma from step to step: give a --start above 0")
    finals = options.finals or _finals(QUICK_FINALS if options.quick else FINALS)
    lengths = options.lengths or _lengths(QUICK_LENGTHS if options.quick else LENGTHS)
    cases = [
        {"model": model, "method": method, "final": final, "length": length, "seed": seed}
        for length in lengths  # each a comparison of its own, which is whole before the next begins
        for model in common.chosen_models(options, MODELS, QUICK_MODELS)
        for method in options.methods
        for final in finals
        if final != "0" or _takes_0(method, length, options.shape)
        for seed in common.chosen_seeds(options)
    ]
    found = []
    for case in cases:
        is_constant = _annealing(case, start, options.shape).is_constant
        once = {**case, "length": "0"} if is_constant else case
        if once not in found:
            found.append(once)
    if not found:
        what = "dr2net alone" if "momentum" not in options.methods else "--shape geometric"
        raise UsageError(f"{what} has no final value 0; give --finals above 0")
    return found


def _takes_0(method: str, length: str, shape: str) -> bool:
    """Dr2Net's beta is above 0, where nothing could be undone; and no factors lead to 0, where the first step does."""
    return method == "momentum" and (length == "0" or shape != "geometric")


def _annealing(case: Case, start: Fraction, shape: str) -> Annealing:
    return METHODS[case["method"]](start, Fraction(case["final"]), Fraction(case["length"]), shape)


def _task(
    model: str, recipe: Recipe, device: torch.device, data: ImageData, before: ByteWindows, text: ByteWindows
) -> Task[Any]:
    if is_text(model):
        return TextTask(model, recipe, device, before, text)
    return ImageTask(model, recipe, device, data)


def _images(options: argparse.Namespace) -> ImageData:
    """What ResNets are fine-tuned on.

    Raises:
        UsageError: The images cannot be read, or those of half of the classes are less than a batch.
    """
    data = common.chosen_images(options)
    half = first_half(data)
    if len(half.x_train) < options.batch_size or not len(half.x_test):
        raise UsageError(
            f"{len(half.x_train)} training and {len(half.x_test)} test images of the first half of the classes, on "
            f"which ResNets are pretrained, are less than one batch of {options.batch_size} and one to test; give a "
            "smaller --batch-size or more images"
        )
    return data


def _texts(options: argparse.Namespace) -> tuple[ByteWindows, ByteWindows]:
    """What decoders are pretrained on, and what they are fine-tuned on.

    Raises:
        UsageError: A text cannot be read, or is less than a batch of windows.
    """
    few = common.QUICK_IMAGES if options.quick else None
    train, test = options.train_samples or few, options.test_samples or few
    found = []
    for path, name, default in (
        (options.pretraining_text, "Python's reference", python_topics),
        (options.text, "scikit-learn's descriptions", data_set_descriptions),
    ):
        found.append(_text(path, name, default, options.window).part(train=train, validation=test))
        if len(found[-1].x_train) < options.batch_size:
            raise UsageError(
                f"{found[-1].name}: {len(found[-1].x_train)} windows to train on are less than one batch of "
                f"{options.batch_size}; give a smaller --batch-size or --window"
            )
    return found[0], found[1]


def _text(path: Path | None, name: str, default: Callable[[], str], length: int) -> ByteWindows:
    if length < 2:
        raise UsageError(f"a --window of {length} bytes has no next byte; give 2 or more")
    try:
        text = default() if path is None else read_text(path)
        return windows(name if path is None else path.name, text.encode(), length)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _described(before: ByteWindows, text: ByteWindows) -> dict[str, Any]:
    both: Sequence[ByteWindows] = (before, text)
    return {
        "pretraining_text": before.name,
        "text": text.name,
        "text_windows": [len(data.x_train) for data in both],
        "text_digests": [data.digest for data in both],
    }
