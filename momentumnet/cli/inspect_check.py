"""``momentumnet inspect --check``: a model is converted, and its training steps compared with stored activations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from momentumnet.bench.measuring.probe import StepCost
from momentumnet.cli import arguments
from momentumnet.cli.failures import told_of_inputs
from momentumnet.command_errors import CommandError, UsageError
from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning import plan
from momentumnet.conversion.planning_options import gamma_without_budget
from momentumnet.finetuning import models
from momentumnet.finetuning.conversion_check import LIMIT, Check, check
from momentumnet.memory import format_bytes
from momentumnet.streams.blocks.copies import copy_of

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

COLUMNS = ("network", "held", "peak", "step time")


def run(report: Report, model: nn.Module, inputs: Any, options: argparse.Namespace) -> None:
    """Shows what the conversion comes to.

    Raises:
        CommandError: A gradient differs.
        UsageError: The options do not go together, or the model cannot make a training step on such inputs.
        ConversionError: The model has no stream that can be carried.
    """
    if options.largest_batch:
        raise UsageError("--check makes steps with the inputs that are given; leave out --largest-batch")
    if models.is_detection(options.model) and not any(isinstance(given, str) for given in options.input or ()):
        raise UsageError(
            f"{options.model} computes its loss from targets: --check needs images and targets, from a function, "
            "--input module:function"
        )
    with told_of_inputs(options.model, options.input):
        gamma, converted = _conversion(model.train(), inputs, options)
        stored = partial(convert, model, inputs, gamma=gamma, backward="stored") if gamma else partial(copy_of, model)
        found = check(model, inputs, stored=stored, converted=converted)
    _show(report, found, options, gamma)
    name, error = found.worst
    if not found.passed:
        raise CommandError(
            f"the gradients of {options.model} differ from those with stored activations: of {name} by {error:.1e}, "
            f"more than {LIMIT:g}"
        )


def _conversion(model: nn.Module, inputs: Any, options: argparse.Namespace) -> tuple[Fraction, Callable[[], nn.Module]]:
    """The momentum factor of the conversion that is asked for, and what converts a copy."""
    if arguments.is_planned(options):
        planned = plan(
            model, inputs, gradients=options.gradients, gamma=options.gamma, budget=options.budget, spare=options.spare
        )
        return planned.gamma, partial(convert, model, plan=planned)
    gamma = gamma_without_budget(options.gamma)
    return gamma, partial(convert, model, inputs, gamma=gamma, others=options.others)


def _show(report: Report, found: Check, options: argparse.Namespace, gamma: Fraction) -> None:
    name, error = found.worst
    rows = [(network, *_cells(cost)) for network, cost in found.costs.items()]
    report.table(COLUMNS, rows, title=options.model)
    report.line("Bytes and time of one forward and backward pass, beside parameters and their gradients.")
    report.line(
        f"Largest error of a gradient against stored activations, of {len(found.errors)} parameters: {error:.1e} "
        f"({name})"
    )
    report.line(f"The output differs from the unconverted network's by {found.output_change:.2%} at gamma {gamma}.")
    report.result(
        {
            "command": "inspect",
            "model": options.model,
            "gamma": str(gamma),
            "networks": {
                network: {**asdict(cost.memory), "seconds": cost.seconds} for network, cost in found.costs.items()
            },
            "gradient_error": error,
            "parameter": name,
            "limit": LIMIT,
            "passed": found.passed,
            "output_change": found.output_change,
        }
    )


def _cells(cost: StepCost) -> tuple[str, ...]:
    memory = cost.memory
    return format_bytes(memory.saved_bytes), format_bytes(memory.peak_bytes), f"{cost.seconds * 1000:.0f} ms"
