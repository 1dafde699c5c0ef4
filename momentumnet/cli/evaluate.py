"""``momentumnet evaluate``: how well the network of a run tells the classes apart, class by class."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from momentumnet.cli import arguments
from momentumnet.cli.options import (
    CommandText,
    add_command,
    add_count,
    add_device,
    add_run_folder,
    add_skip_broken,
    chosen_device,
)
from momentumnet.command_errors import UsageError
from momentumnet.files import whole_file
from momentumnet.finetuning import data
from momentumnet.finetuning.data import ImageData
from momentumnet.finetuning.trained import Trained
from momentumnet.finetuning.training import predictions
from momentumnet.listing import listed

SHOWN = 10  # classes up to which the confusion matrix is printed
INDENTED = 100  # classes up to which evaluation.json has a line for each number: of thousands they would take gigabytes
TEXT = CommandText(
    "accuracy of a run's network, per class, and its confusion matrix",
    """\
Evaluate the network that momentumnet finetune has left in a folder: accuracy, accuracy and precision of each class, and
the confusion matrix, as a table (of up to ten classes) and as a plot.""",
    """\
examples:
  momentumnet evaluate runs/resnet18-digits
  momentumnet evaluate runs/resnet18-photos --data holidays    holidays/val/CLASS/*.jpg, or holidays/CLASS/*.jpg
  momentumnet evaluate runs/resnet18-digits --json > evaluation.json

Writes evaluation.json and confusion.png to the run's folder.""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    command = add_command(commands, "evaluate", TEXT, run)
    add_run_folder(command)
    command.add_argument(
        "--data",
        type=arguments.data_source,
        metavar="NAME|FOLDER",
        help="what to evaluate on, as for finetune (default: the validation images of the run)",
    )
    add_count(command, "--batch-size", 64)
    add_skip_broken(command)
    add_device(command)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: The folder holds no run, or the images cannot be used.
        CommandError: The network puts out NaN.
    """
    from momentumnet.cli.confusion_plot import plot_confusion
    from momentumnet.cli.report import Report

    report, trained = Report.of(options), Trained.read(options.run_folder)
    source = options.data or trained.settings["data"]
    reading = data.Reading(
        validation=None if options.data else trained.settings.get("validation"), skip_broken=options.skip_broken
    )
    images = data.validation_of(source, trained.preprocessing, say=report.line, reading=reading)
    _check_classes(trained, images)
    if options.data is None:
        _check_held_out(trained, images)
    device = chosen_device(options)
    network = trained.network(device)
    counts = torch.zeros(len(trained.classes), len(trained.classes), dtype=torch.int64)
    with report.progress() as progress:
        batches = images.batches(images.validation, options.batch_size)
        task = progress.add_task("evaluating", total=len(batches), images=options.batch_size)
        for outputs, labels in predictions(network, batches, device):
            trained.check_outputs(outputs)
            _count(counts, labels, outputs.argmax(dim=1))
            progress.advance(task)
    values = {
        "command": "evaluate",
        "run": str(options.run_folder),
        "data": source,
        **measures(counts, trained.classes),
    }
    _show(report, values, source)
    report.result(values)  # first: where nothing can be written, it is not lost
    indent = 2 if len(trained.classes) <= INDENTED else None
    whole_file.write_json(options.run_folder / "evaluation.json", values, indent=indent)
    plot_confusion(
        values["confusion"], trained.classes, options.run_folder / "confusion.png", title=str(options.run_folder)
    )
    report.remark(f"Written: {options.run_folder}/evaluation.json and confusion.png")


def _check_classes(trained: Trained, images: ImageData) -> None:
    if images.class_names != trained.classes:
        different = sorted(set(images.class_names) ^ set(trained.classes))
        raise UsageError(
            f"{images.name} holds other classes than {trained.folder} was trained on: {listed(different)} "
            f"{'are' if len(different) > 1 else 'is'} in one of them only"
        )


def _check_held_out(trained: Trained, images: ImageData) -> None:
    if trained.settings.get("held_out", images.held_out) != images.held_out:
        raise UsageError(
            f"files have come to {images.name} or gone since {trained.folder} held a part of them out, so that some of "
            "its training images would be evaluated; put the folder back as it was, or name other images by --data"
        )


def _count(counts: Tensor, labels: Tensor, predicted: Tensor) -> None:
    pairs = labels.cpu() * len(counts) + predicted.cpu()
    counts += torch.bincount(pairs, minlength=counts.numel()).view_as(counts)


def measures(counts: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy in all and by class.

    Args:
        counts: int64 (classes, classes): images of the row's class that were taken for the column's.
        classes: Their names.

    Returns:
        ``accuracy`` from 0 to 1; ``classes``: of each its name, number of images, accuracy (recall) and precision, None
        where there is nothing to divide by; ``confusion``: the counts.
    """
    right, images, taken = counts.diagonal().tolist(), counts.sum(dim=1).tolist(), counts.sum(dim=0).tolist()
    rows = [
        {"class": name, "images": n, "accuracy": r / n if n else None, "precision": r / t if t else None}
        for name, n, r, t in zip(classes, images, right, taken, strict=True)
    ]
    total = sum(images)
    return {
        "images": total,
        "accuracy": sum(right) / total if total else None,
        "classes": rows,
        "confusion": counts.tolist(),
    }


def _show(report: Any, values: dict[str, Any], source: str) -> None:
    accuracy = "none" if values["accuracy"] is None else f"{values['accuracy']:.1%}"
    rows = [
        (
            row["class"],
            str(row["images"]),
            *("" if row[key] is None else f"{row[key]:.1%}" for key in ("accuracy", "precision")),
        )
        for row in values["classes"]
    ]
    report.table(("class", "images", "accuracy", "precision"), rows, title=f"{values['run']} on {source}")
    names = [row["class"] for row in values["classes"]]
    if len(names) <= SHOWN:
        counts = [(name, *map(str, row)) for name, row in zip(names, values["confusion"], strict=True)]
        report.table(
            ("class", *names), counts, title="Images of each class (rows) by what they were taken for (columns)"
        )
    report.line(f"Accuracy on {values['images']} images: {accuracy}")
