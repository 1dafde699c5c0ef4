"""Planned networks beside the other methods: at the bytes that each of those takes, and at the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction

from torch import Tensor, nn

from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.probe import step_memory
from momentumnet.bench.measuring.training_step import FAILURES, TrainingStep, squared
from momentumnet.bench.reporting.results import Row
from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning import plan
from momentumnet.planner.machine.budget import LEAST

# What names say of a network that is planned: behind it stands in whose bytes, or "least".
PLANNED = ", planned as "
# Planned without a gamma: the plan says whether there is momentum.
ANY_GAMMA = "any gamma"
# And of one whose plan may move activations to host memory.
OFFLOADING = ", offloading"
# Other arithmetic or compiled code would not be the same comparison.
_NOT_COMPARED = (ways.COMPILED_BLOCKS, ways.HALF_KEPT, ways.STORED_AGAIN, " float", PLANNED)


def peaks_of(variants: Mapping[str, nn.Module | str], step: TrainingStep) -> dict[str, int]:
    """The peaks of the compared methods' and of planned networks, gradients included, as budgets count them."""

    def fresh(network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        step(network)

    peaks = {}
    for method, network in variants.items():
        if isinstance(network, str) or not (_is_compared(method) or PLANNED in method):
            continue
        with suppress(*FAILURES):  # its own row says why
            peaks[method] = step_memory(network, fresh).peak_bytes
    return peaks


def planned_builds(peaks: Mapping[str, int], gamma: Fraction, *, offloading: bool = False) -> dict[str, ways.Build]:
    """How to make the planned networks: within the peaks of the other methods, and within the least.

    With any gamma, and at ``gamma``; with ``offloading`` with any gamma also by plans that may move activations to host
    memory.
    """
    budgets: dict[str, int | str] = {LEAST: LEAST, **peaks}
    builds = {
        planned_name(factor, of): _planner(factor, budget) for factor in (None, gamma) for of, budget in budgets.items()
    }
    if offloading:
        for of, budget in budgets.items():
            builds[planned_name(None, of, OFFLOADING)] = _planner(None, budget, offload=True)
    return builds


def planned_name(gamma: Fraction | None, of: str, how: str = "") -> str:
    """What a network that is planned as a method, or as "least", is called; ``how`` is nothing or ``OFFLOADING``."""
    return (ANY_GAMMA if gamma is None else ways.momentum_name(gamma)) + how + PLANNED + of


def beside_the_best(rows: Sequence[Row], peaks: Mapping[str, int]) -> list[Row]:
    """The rows, those of planned networks with their budget, and the quickest other method within it.

    Args:
        rows: A row for each method.
        peaks: By method, as `peaks_of` has them.
    """
    seconds = {row["method"]: row["step_seconds"] for row in rows if row["step_seconds"] is not None}
    found = []
    for row in rows:
        _, _, of = row["method"].partition(PLANNED)
        if of:
            budget = peaks.get(row["method"] if of == LEAST else of)
            rivals = {other: peak for other, peak in peaks.items() if _is_compared(other)}
            fitting = [
                other for other, peak in rivals.items() if budget is not None and peak <= budget and other in seconds
            ]
            best = min(fitting, key=lambda other: float(seconds[other]), default=None)
            time = None if best is None or row["method"] not in seconds else seconds[row["method"]] / seconds[best]
            is_free = row["method"].startswith(ANY_GAMMA)  # others are measured by those of the same function
            lowest = min((peak for other, peak in rivals.items() if is_free or _is_momentum(other)), default=None)
            figures = {"peak_with_gradients": peaks.get(row["method"]), "budget_bytes": budget, "lowest_peak": lowest}
            row = {**row, **figures, "best_within": best, "time_to_best": time}
        found.append(row)
    return found


def _is_momentum(method: str) -> bool:
    """Whether the method trains a network with momentum."""
    return method.startswith("momentum")


def _is_compared(method: str) -> bool:
    return not any(part in method for part in _NOT_COMPARED)


def _planner(gamma: Fraction | None, budget: int | str, *, offload: bool = False) -> ways.Build:
    def build(model: nn.Module, x: Tensor) -> nn.Module:
        found = plan(model.train(), x, gamma=gamma, budget=budget, loss=squared, offload=offload)
        return convert(ways.twin(model), plan=found, inplace=True)

    return build
