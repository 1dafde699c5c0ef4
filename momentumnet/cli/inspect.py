"""``momentumnet inspect``: the residual streams of a model, and what converting them saves."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision.models import list_models

from momentumnet.cli import arguments, completion, inspect_check
from momentumnet.cli.failures import told_of_inputs
from momentumnet.cli.options import CommandText, add_choice, add_command, add_input, conversion
from momentumnet.command_errors import UsageError
from momentumnet.conversion.batch_size import largest_batch
from momentumnet.conversion.planning import plan
from momentumnet.finetuning import model_sources
from momentumnet.memory import format_bytes
from momentumnet.planner.machine.budget import ANEW, GRADIENTS, LEAST

if TYPE_CHECKING:
    from momentumnet.cli.report import Report
    from momentumnet.planner.plans.training_plan import TrainingPlan
    from momentumnet.streams.plan import Plan, PlanRow

TEXT = CommandText(
    "show which blocks can be converted and what that saves",
    """\
Trace a model once with random weights (nothing is downloaded) and show its residual streams: runs of blocks that
conversion can carry, with the bytes held between forward and backward before and after. The model is torchvision's,
timm's, one of transformers, or what a function of yours returns. --check converts it and makes training steps.""",
    """\
examples:
  momentumnet inspect resnet50
  momentumnet inspect resnet101 --input 32,3,224,224 --spare 1GiB
  momentumnet inspect resnet101 --input 32,3,224,224 --budget 2GiB --plot step.png
  momentumnet inspect resnet101 --input 1,3,224,224 --budget 8GiB --largest-batch
  momentumnet inspect raft_small --input 1,3,128,128 --input 1,3,128,128
  momentumnet inspect timm:vit_tiny_patch16_224 --check
  momentumnet inspect hf:checkpoint --input input_ids=2x16:int64     checkpoint/config.json, and weights if there are
  momentumnet inspect hf:config.json
  momentumnet inspect mine:network --input 2x3x64x64                 mine.py: def network(): return an nn.Module
  momentumnet inspect mine:network --input mine:inputs --check       inputs(): a tensor, a tuple or a dict

With --check the exit status is 1 where a gradient differs by more than 1e-5 from that of stored activations.""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    parser = add_command(commands, "inspect", TEXT, run, conversion(others="keep"))
    model = parser.add_argument("model", type=arguments.any_model, metavar="MODEL", help=model_sources.MEANING)
    completion.offer(model, list_models)
    meaning = (
        "choose for each block and module what takes the least time within this memory, e.g. 4GiB, gradients "
        "included and parameters not, 'device' for what is free there, or 'least'; measures a training step"
    )
    parser.add_argument("--budget", type=arguments.budget, metavar="SIZE", help=meaning)
    add_choice(
        parser,
        "--gradients",
        GRADIENTS,
        "gradients of parameters, which count: made anew by each step, or present all the time, as where those of "
        "several batches are accumulated;",
    )
    parser.add_argument(
        "--largest-batch",
        action="store_true",
        help="find the largest batch that fits --budget; of --input, all but the first dimension counts",
    )
    add_input(parser)
    parser.add_argument(
        "--plot",
        type=arguments.picture,
        metavar="FILE",
        help="draw the streams; with --budget the bytes over a training step, beside those of other methods (.png, "
        ".svg or .pdf)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="convert it, and compare a training step's gradients with those of stored activations; shows bytes and "
        "time before and after, and how far the output moves",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: The model does not accept the input, or options do not go together.
        ConversionError: The model has no stream that can be carried.
    """
    from momentumnet.cli.report import Report

    report = Report.of(options)
    if options.largest_batch and options.budget in (None, LEAST):
        raise UsageError("--largest-batch needs the memory that a step may take; add for example --budget 8GiB")
    if options.gradients != ANEW and not arguments.is_planned(options):
        raise UsageError("--gradients says what --budget and --spare count; add for example --budget 4GiB")
    if options.check and options.plot is not None:
        raise UsageError("--plot draws what --check does not plan; leave out one of the two")
    model = model_sources.build(options.model)
    if options.check:
        inspect_check.run(report, model, _inputs(model, options, default_batch=2), options)
    elif arguments.is_planned(options):
        _within_budget(report, model, options)
    else:
        _show(report, model, options)


def _inputs(model: nn.Module, options: argparse.Namespace, **batch: int) -> Any:
    return model_sources.example_inputs(options.model, model, options.input, **batch)


def _show(report: Report, model: nn.Module, options: argparse.Namespace) -> None:
    """Shows the streams."""
    inputs = _inputs(model, options)
    with told_of_inputs(options.model, options.input):
        planned = plan(model, inputs, gamma=options.gamma, others=options.others)
    columns = ("stream", "blocks", "shape", "before", "after", "checkpointed")
    report.table(columns, _rows(planned), title=options.model, left=2)
    report.line(
        f"Bytes held between forward and backward, at gamma {planned.gamma}, others {options.others}; "
        "checkpointed: by torch.utils.checkpoint of each block."
    )
    for note in planned.notes:
        report.line(note)
    report.result(
        {
            "command": "inspect",
            "model": options.model,
            "gamma": str(planned.gamma),
            "others": options.others,
            "streams": [_values(row) for row in planned.rows],
            "saved_before": planned.saved_before,
            "saved_after": planned.saved_after,
        }
    )
    _draw(report, planned, options)


def _rows(planned: Plan) -> list[tuple[str, ...]]:
    """Of the table: one a stream, and one for all."""
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
    return [*rows, ("whole network", blocks, "", *total, "")]


def _values(row: PlanRow) -> dict[str, Any]:
    """A stream as plain values."""
    return {
        "path": row.path,
        "kind": row.kind,
        "blocks": row.blocks,
        "shape": list(row.shape),
        "beside": [list(shape) for shape in row.beside],
        "saved_before": row.saved_before,
        "saved_after": row.saved_after,
        "checkpointed": row.checkpointed,
    }


def _within_budget(report: Report, model: nn.Module, options: argparse.Namespace) -> None:
    """Shows the choices that fit a budget."""
    if options.others != "keep":
        raise UsageError("--budget and --spare choose for each block and module; leave out --others")
    model.train()
    batch = _largest_batch(report, model, options) if options.largest_batch else None
    inputs = _inputs(model, options) if batch is None else _inputs(model, options, batch=batch)
    with told_of_inputs(options.model, options.input):
        planned = plan(
            model, inputs, gradients=options.gradients, gamma=options.gamma, budget=options.budget, spare=options.spare
        )
    for line in str(planned).splitlines():
        report.line(line)
    report.result(
        {
            "command": "inspect",
            "model": options.model,
            "gamma": str(planned.gamma),
            "budget": planned.budget,
            "gradients": planned.gradients,
            "peak": planned.peak,
            "measured_peak": planned.measured_peak,
            "stored_peak": planned.stored_peak,
            "seconds": planned.seconds,
            "stored_seconds": planned.stored_seconds,
            "units": [asdict(unit) for unit in planned.units],
            "largest_batch": batch,
        }
    )
    _draw(report, planned, options)


def _draw(report: Report, planned: Plan | TrainingPlan, options: argparse.Namespace) -> None:
    if options.plot is not None:
        planned.plot(options.plot)
        report.line(f"Written: {options.plot}")


def _largest_batch(report: Report, model: nn.Module, options: argparse.Namespace) -> int:
    batch = largest_batch(
        model,
        lambda batch: _inputs(model, options, batch=batch),
        options.budget,
        gamma=options.gamma,
        gradients=options.gradients,
    )
    report.line(f"the largest batch: {batch}")
    return batch
