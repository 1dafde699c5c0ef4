"""One training step of one network: each method's memory, time and gradient error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import nn

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.compiled import compilation
from momentumnet.bench.measuring.training_step import (
    FAILURES,
    TrainingStep,
    built,
    ratio,
    reason,
    relative_error,
    step_rows,
)
from momentumnet.bench.networks.measured import Network
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.step.planned import ANY_GAMMA, beside_the_best, peaks_of, planned_builds
from momentumnet.core.passes.settings import ARITHMETICS
from momentumnet.streams.blocks.converted import streams_of
from momentumnet.streams.finding.discover import find_streams


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
    planning: bool = False,
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
        planning: Whether networks that are planned, at the last gamma, are measured as well.
    """
    torch.manual_seed(0)
    model = network.build().to(device)
    step = TrainingStep(network.example().to(device), dtype)
    with compilation():
        variants, peaks = built(builds, model, step), dict[str, int]()
        if planning:
            peaks = peaks_of(variants, step)
            planned = built(planned_builds(peaks, gammas[-1], offloading=device.type == "cuda"), model, step)
            variants, peaks = variants | planned, peaks | peaks_of(planned, step)
            variants[ways.STORED_AGAIN] = ways.twin(model)
        errors = {name: _gradient_error(step, variant, model, name, gammas) for name, variant in variants.items()}
        for name, error in errors.items():
            if isinstance(error, str):
                variants[name] = error
        rows = step_rows(variants, step, repeats=repeats, advance=advance)
    elements = block_elements(step, model)
    measured = [
        {
            "method": name,
            **row,
            "gradient_error": None if isinstance(errors[name], str) else errors[name],
            "memory_to_stored": ratio(rows, name, "peak_bytes", ways.STORED),
            "time_to_stored": ratio(rows, name, "step_seconds", ways.STORED),
            "time_to_checkpoint": ratio(rows, name, "step_seconds", ways.CHECKPOINT),
            "bytes_per_element_and_block": row["saved_bytes"] / elements if elements and row["saved_bytes"] else None,
        }
        for name, row in rows.items()
    ]
    return beside_the_best(measured, peaks)


def block_elements(step: TrainingStep, model: nn.Module) -> int:
    """The elements of the tensors that the blocks of the streams pass on, one for each block; 0 without a stream."""
    with step.autocast():
        return sum(math.prod(stream.shape) * len(stream) for stream in find_streams(model, step.x))


def _gradient_error(
    step: TrainingStep, variant: nn.Module | str, model: nn.Module, name: str, gammas: Sequence[Fraction]
) -> float | str | None:
    """The error against the same rule with stored activations, None where these do not fit; or why there is none."""
    if isinstance(variant, str):
        return variant
    if variant is model:
        return 0.0
    streams = streams_of(variant) if name.startswith(ANY_GAMMA) else []
    if streams:  # which its plan has chosen
        name, gammas = ways.momentum_name(streams[0].gamma), [streams[0].gamma]
    try:
        expected = step.gradient(_reference(step, model, name, gammas))
    except torch.OutOfMemoryError:
        return None
    try:
        return relative_error(step.gradient(variant), expected)
    except FAILURES as error:
        return reason(error)


def _reference(step: TrainingStep, model: nn.Module, name: str, gammas: Sequence[Fraction]) -> nn.Module:
    for gamma in gammas:
        for arithmetic in ARITHMETICS:
            if name.partition(",")[0] == ways.momentum_name(gamma, arithmetic):
                with step.autocast():
                    return ways.converter(gamma, arithmetic, backward="stored")(model, step.x)
    return model
