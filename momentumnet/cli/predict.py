"""``momentumnet predict``: what a run's network takes images for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from momentumnet.cli.options import (
    CommandText,
    add_command,
    add_count,
    add_device,
    add_run_folder,
    add_skip_broken,
    chosen_device,
)
from momentumnet.cli.plain_report import PlainReport
from momentumnet.command_errors import UsageError
from momentumnet.finetuning.images import BrokenImageError, read_image
from momentumnet.finetuning.own_classifiers import logits
from momentumnet.finetuning.trained import Trained

SHOWN = 3  # classes of a file, the likeliest first
TEXT = CommandText(
    "what a run's network takes images for",
    """\
Classify image files with the network that momentumnet finetune has left in a folder: the likeliest classes with their
probabilities, a line a file.""",
    """\
examples:
  momentumnet predict runs/resnet18-photos cat.jpg dog.png
  momentumnet predict runs/resnet18-photos new/*.jpg --json > predictions.jsonl

With --json each line is an object: file, class, probability, and the probabilities of all classes.""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    command = add_command(commands, "predict", TEXT, run)
    add_run_folder(command)
    command.add_argument("files", nargs="+", metavar="FILE", help="image")
    add_count(command, "--batch-size", 64)
    add_skip_broken(command)
    add_device(command)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: The folder holds no run, or a file no image.
        CommandError: The network puts out NaN.
    """
    report, trained = PlainReport.of(options), Trained.read(options.run_folder)
    device = chosen_device(options)
    network, broken = trained.network(device), list[str]()
    for files, images in _batches(trained, options, broken):
        with torch.no_grad():
            outputs = logits(network(images.to(device))).float()
        trained.check_outputs(outputs)
        probabilities = outputs.softmax(dim=1).cpu()
        for file, row in zip(files, probabilities.tolist(), strict=True):
            _show(report, file, row, trained.classes, as_json=options.json)
    if broken:
        report.note(
            f"{len(broken)} of {len(options.files)} files cannot be read and were skipped: {', '.join(broken[:3])}"
        )


def _batches(
    trained: Trained, options: argparse.Namespace, broken: list[str]
) -> Iterator[tuple[Sequence[str], Tensor]]:
    transform = trained.preprocessing.transform()
    for start in range(0, len(options.files), options.batch_size):
        files, images = [], []
        for file in options.files[start : start + options.batch_size]:
            try:
                images.append(transform(read_image(file)))
                files.append(file)
            except BrokenImageError as error:
                if not options.skip_broken:
                    raise UsageError(f"{error}; leave out such files by --skip-broken") from error
                broken.append(file)
        if files:
            yield files, torch.stack(images)


def _show(report: PlainReport, file: str, row: Sequence[float], classes: Sequence[str], *, as_json: bool) -> None:
    ranked = sorted(zip(row, classes, strict=True), key=lambda pair: -pair[0])
    if as_json:
        values = {
            "file": file,
            "class": ranked[0][1],
            "probability": ranked[0][0],
            "probabilities": dict(zip(classes, row, strict=True)),
        }
        print(json.dumps(values), flush=True)
        return
    report.line(f"{file}: {', '.join(f'{name} {probability:.1%}' for probability, name in ranked[:SHOWN])}")
