"""One training step of a number of equal blocks: each method's memory and time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.probe import untouched
from momentumnet.bench.measuring.training_step import TrainingStep, built, step_rows
from momentumnet.bench.networks.measured import family
from momentumnet.bench.reporting.results import Row


def measure(
    name: str,
    depth: int,
    gammas: Sequence[Fraction],
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    repeats: int,
    budget: int | None,
    ended: Collection[str],
) -> list[Row]:
    """A row for each method but those in ``ended``.

    Args:
        name: Kind of block, one of `momentumnet.bench.networks.measured.FAMILIES`.
        depth: Number of blocks.
        gammas: Momentum factors of the converted networks.
        device: Where.
        dtype: Type of autocast; None for none.
        repeats: Timed steps of each method.
        budget: Bytes that a step may take; None for as many as it needs.
        ended: Methods that have passed the budget with fewer blocks.
    """
    torch.manual_seed(0)
    network = family(name, depth)
    model = network.build().to(device)
    step = TrainingStep(_handed_on(name, network.example().to(device), dtype), dtype)
    builds = ways.methods(network, gammas, arithmetics=("exact",))
    variants = built({name: build for name, build in builds.items() if name not in ended}, model, step)
    rows = step_rows(variants, step, repeats=repeats, budget=budget)
    return [{"depth": depth, "method": name, **row} for name, row in rows.items()]


def _handed_on(name: str, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The input in the type in which blocks hand it on, as a stem would under autocast: convolutions change it."""
    with torch.no_grad(), untouched([]), TrainingStep(x, dtype).autocast():
        output: Tensor = family(name, 1).build().to(x.device)(x)
    return x.to(output.dtype)


def ended_methods(rows: Sequence[Row], depth: int) -> set[str]:
    """The methods whose series has ended with fewer blocks than ``depth``."""
    return {row["method"] for row in rows if "error" in row and row["depth"] < depth}
