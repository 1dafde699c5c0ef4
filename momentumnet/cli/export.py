"""``momentumnet export``: a run's weights as a state dict of the stock network."""

from __future__ import annotations

import argparse
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from momentumnet.cli.options import CommandText, add_command, add_run_folder
from momentumnet.cli.plain_report import PlainReport
from momentumnet.command_errors import UsageError
from momentumnet.files import whole_file
from momentumnet.finetuning import model_sources
from momentumnet.finetuning.trained import WEIGHTS, Trained

TEXT = CommandText(
    "a run's weights as a state dict of the stock network",
    """\
Write the weights that momentumnet finetune has left in a folder as a state dict that loads into the stock torchvision
network. Converted at gamma 0 it computes the same there; at another gamma nearly the same, and a line says so.""",
    """\
examples:
  momentumnet export runs/resnet18-digits                           writes runs/resnet18-digits/resnet18.pt
  momentumnet export runs/resnet18-digits --output fine-tuned.pt

  model = torchvision.models.get_model("resnet18", num_classes=10)
  model.load_state_dict(torch.load("fine-tuned.pt", weights_only=True))""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    command = add_command(commands, "export", TEXT, run)
    add_run_folder(command)
    command.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN/MODEL.pt)")


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: The folder holds no run, or the output's folder is not there.
    """
    report, trained = PlainReport.of(options), Trained.read(options.run_folder)
    path = options.output or trained.folder / f"{model_sources.in_file_names(trained.model)}.pt"
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: there is no folder {path.parent}")
    whole_file.write(path, partial(torch.save, trained.stock().state_dict()))
    gammas = sorted({stream["gamma"] for stream in trained.conversion["streams"]})
    classes = len(trained.classes)
    made = f"torchvision.models.get_model({trained.model!r}, num_classes={classes})"
    if model_sources.is_own(trained.model):
        made = f"{trained.model} with {classes} classes"
    report.remark(f"Written: {path}, for {made}")
    if any(Fraction(gamma) for gamma in gammas):
        report.line(
            f"The network was trained at gamma {', '.join(gammas)}: the stock one computes nearly the same only. "
            f"Exactly: momentumnet.convert(model, like=...) with conversion of {trained.folder}/config.json"
        )
    report.result(
        {
            "command": "export",
            "output": str(path),
            "model": trained.model,
            "classes": list(trained.classes),
            "gamma": gammas,
            "weights": str(trained.folder / WEIGHTS),
        }
    )
