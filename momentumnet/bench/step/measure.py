"""One training step of one network: each method's memory, time and gradient error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import nn

from momentumnet.bench import methods as ways
from momentumnet.bench.compiled import compilation
from momentumnet.bench.networks import Network
from momentumnet.bench.results import Row
from momentumnet.bench.training_step import FAILURES, TrainingStep, built, gradient_error, ratio, reason, step_rows

ARITHMETICS = ("exact", "float")


def step_methods(
    network: Network, gammas: Sequence[Fraction], *, offloading: bool, compiling: bool
) -> dict[str, ways.Build]:
    """The methods that are compared: see `momentumnet.bench.methods.methods`."""
    return ways.methods(
        network, gammas, arithmetics=ARITHMETICS, keeping=True, offloading=offloading, compiling=compiling
    )


def measure(
    network: Network,
    builds: Mapping[str, ways.Build],
    gammas: Sequence[Fraction],
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    repeats: int,
    advance: Callable[[], object],
) -> list[Row]:
    """A row for each method.

    Args:
        network: What is trained.
        builds: How to make it in each method, as `step_methods` has them.
        gammas: Momentum factors of the converted networks.
        device: Where.
        dtype: Type of autocast; None for none.
        repeats: Timed steps of each method.
        advance: Called once for each method.
    """
    torch.manual_seed(0)
    model = network.build().to(device)
    step = TrainingStep(network.example().to(device), dtype)
    with compilation():
        variants = built(builds, model, step)
        errors = {name: _gradient_error(step, variant, model, name, gammas) for name, variant in variants.items()}
        for name, error in errors.items():
            if isinstance(error, str):
                variants[name] = error
        rows = step_rows(variants, step, repeats=repeats, advance=advance)
    return [
        {
            "method": name,
            **row,
            "gradient_error": errors[name] if isinstance(errors[name], float) else None,
            "memory_to_stored": ratio(rows, name, "peak_bytes", ways.STORED),
            "time_to_stored": ratio(rows, name, "step_seconds", ways.STORED),
            "time_to_checkpoint": ratio(rows, name, "step_seconds", ways.CHECKPOINT),
        }
        for name, row in rows.items()
    ]


def _gradient_error(
    step: TrainingStep, variant: nn.Module | str, model: nn.Module, name: str, gammas: Sequence[Fraction]
) -> float | str:
    """The error against the same rule with stored activations; or why there is none."""
    if isinstance(variant, str):
        return variant
    if variant is model:
        return 0.0
    try:
        return gradient_error(step, variant, _reference(step, model, name, gammas))
    except FAILURES as error:
        return reason(error)


def _reference(step: TrainingStep, model: nn.Module, name: str, gammas: Sequence[Fraction]) -> nn.Module:
    for gamma in gammas:
        for arithmetic in ARITHMETICS:
            if name.partition(",")[0] == ways.momentum_name(gamma, arithmetic):
                with step.autocast():
                    return ways.converter(gamma, arithmetic, backward="stored")(model, step.x)
    return model
