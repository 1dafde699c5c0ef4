"""``momentumnet inspect``: the residual streams of a model, and what converting them saves."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn

from momentumnet.cli import arguments
from momentumnet.cli.options import CommandText, add_command, conversion
from momentumnet.command_errors import CommandError
from momentumnet.finetuning import models
from momentumnet.memory import format_bytes
from momentumnet.planner.budget import LEAST
from momentumnet.planning import largest_batch, plan

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

TEXT = CommandText(
    "show which blocks can be converted and what that saves",
    """\
Trace a torchvision model once with random weights (nothing is downloaded) and show its residual streams: runs of
blocks that conversion can carry, with the bytes held between forward and backward before and after.""",
    """\
examples:
  momentumnet inspect resnet50
  momentumnet inspect resnet101 --input 32,3,224,224 --spare 1GiB
  momentumnet inspect resnet101 --input 32,3,224,224 --budget 2GiB
  momentumnet inspect resnet101 --input 1,3,224,224 --budget 8GiB --largest-batch
  momentumnet inspect raft_small --input 1,3,128,128 --input 1,3,128,128""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    parser = add_command(commands, "inspect", TEXT, run, conversion(others="keep"))
    parser.add_argument("model", type=arguments.any_model, metavar="MODEL", help="name of a torchvision model")
    shapes = "shape of the input, e.g. 1,3,224,224; once for each input (default: what the model is made for)"
    meaning = (
        "choose for each block and module what takes the least time within this memory, e.g. 4GiB, gradients "
        "included and parameters not, 'device' for what is free there, or 'least'; measures a training step"
    )
    parser.add_argument("--budget", type=arguments.budget, metavar="SIZE", help=meaning)
    parser.add_argument(
        "--largest-batch",
        action="store_true",
        help="find the largest batch that fits --budget; of --input, all but the first dimension counts",
    )
    parser.add_argument("--input", type=arguments.shape, action="append", metavar="SHAPE", help=shapes)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        CommandError: The model does not accept the input.
        ConversionError: The model has no stream that can be carried.
    """
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    model = models.untrained(options.model)
    inputs = models.example_inputs(options.model, options.input)
    if options.largest_batch and options.budget in (None, LEAST):
        raise CommandError("--largest-batch needs the memory that a step may take; add for example --budget 8GiB")
    if options.budget is not None or options.spare:
        _within_budget(report, model, inputs, options)
        return
    try:
        planned = plan(model, inputs, gamma=options.gamma, others=options.others)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        # What models raise for a shape that they are not made for.
        shapes = " and ".join(arguments.shape_text(shape) for shape in options.input or [])
        if not shapes:
            raise
        reason = textwrap.shorten(str(error), 200)
        raise CommandError(f"{options.model} does not accept the input {shapes}: {reason}") from error
    columns = ("stream", "blocks", "shape", "before", "after", "checkpointed")
    rows = [
        (
            row.path or "(root)",
            str(row.blocks),
            arguments.shape_text(row.shape),
            format_bytes(row.saved_before),
            format_bytes(row.saved_after),
            format_bytes(row.checkpointed),
        )
        for row in planned.rows
    ]
    blocks = str(sum(row.blocks for row in planned.rows))
    total = (format_bytes(planned.saved_before), format_bytes(planned.saved_after))
    report.table(columns, [*rows, ("whole network", blocks, "", *total, "")], title=options.model, left=2)
    report.line(
        f"Bytes held between forward and backward, at gamma {planned.gamma}, others {options.others}; "
        "checkpointed: by torch.utils.checkpoint of each block."
    )
    report.result(
        {
            "command": "inspect",
            "model": options.model,
            "gamma": str(planned.gamma),
            "others": options.others,
            "streams": [
                {
                    "path": row.path,
                    "kind": row.kind,
                    "blocks": row.blocks,
                    "shape": list(row.shape),
                    "saved_before": row.saved_before,
                    "saved_after": row.saved_after,
                    "checkpointed": row.checkpointed,
                }
                for row in planned.rows
            ],
            "saved_before": planned.saved_before,
            "saved_after": planned.saved_after,
        }
    )


def _within_budget(report: Report, model: nn.Module, inputs: Any, options: argparse.Namespace) -> None:
    """Shows the choices that fit a budget."""
    arguments.check_one_budget(options)
    if options.others != "keep":
        raise CommandError("--budget and --spare choose for each block and module; leave out --others")
    model.train()
    batch = _largest_batch(report, model, options) if options.largest_batch else None
    if batch is not None:
        inputs = models.example_inputs(options.model, options.input, batch=batch)
    planned = plan(model, inputs, gamma=options.gamma, budget=options.budget, spare=options.spare)
    for line in str(planned).splitlines():
        report.line(line)
    report.result(
        {
            "command": "inspect",
            "model": options.model,
            "gamma": str(planned.gamma),
            "budget": planned.budget,
            "peak": planned.peak,
            "stored_peak": planned.stored_peak,
            "seconds": planned.seconds,
            "stored_seconds": planned.stored_seconds,
            "units": [asdict(unit) for unit in planned.units],
            "largest_batch": batch,
        }
    )


def _largest_batch(report: Report, model: nn.Module, options: argparse.Namespace) -> int:
    batch = largest_batch(
        model,
        lambda batch: models.example_inputs(options.model, options.input, batch=batch),
        options.budget,
        gamma=options.gamma,
    )
    report.line(f"the largest batch: {batch}")
    return batch
