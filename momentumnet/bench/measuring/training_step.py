"""One training step of a network in its variants: gradient error, memory and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from momentumnet.bench.measuring.compiled import COMPILE_ERRORS
from momentumnet.bench.measuring.probe import step_memory, step_seconds, untouched
from momentumnet.bench.reporting.results import Row
from momentumnet.errors import MomentumNetError

# With what a method may fail and have a row that says so; anything else is a fault of the benchmark.
FAILURES: tuple[type[Exception], ...] = (MomentumNetError, torch.OutOfMemoryError, *COMPILE_ERRORS)
# Why a method was measured, and not timed.
OVER_BUDGET = "over the budget"


class TrainingStep:
    """Forward and backward pass with the mean of the squared outputs as loss, in training mode.

    Args:
        x: The input.
        dtype: Type of autocast; None for none.
    """

    def __init__(self, x: Tensor, dtype: torch.dtype | None) -> None:
        self.x, self._dtype = x, dtype

    def __call__(self, network: nn.Module) -> None:
        network.train()
        with self.autocast():
            output = network(self.x)
        squared(output).backward()

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward pass."""
        return nullcontext() if self._dtype is None else torch.autocast(self.x.device.type, self._dtype)

    def gradient(self, network: nn.Module) -> Tensor:
        """The gradient of one step, as one vector; always the same random numbers. The network is left as it was."""
        with untouched([network]):
            torch.manual_seed(0)
            network.zero_grad(set_to_none=True)
            self(network)
            found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            return torch.cat([gradient.flatten().float() for gradient in found])


def squared(output: Tensor) -> Tensor:
    """The mean of the squared outputs."""
    return output.float().square().mean()


def gradient_error(step: TrainingStep, network: nn.Module, reference: nn.Module) -> float:
    """Relative L2 error of the network's gradient against that of the reference, which holds the same parameters."""
    return relative_error(step.gradient(network), step.gradient(reference))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def errors_by_parameter(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, floor: float
) -> dict[str, float]:
    """The relative L2 error of each parameter's gradient; infinite where one of the two has none, NaN where one is.

    Args:
        found: The gradients.
        expected: Those that they should be.
        floor: A gradient with a smaller norm is rounding noise (a bias in front of a norm); its error is relative to
            this one.
    """
    errors = dict.fromkeys(found.keys() ^ expected.keys(), math.inf)
    for name in found.keys() & expected.keys():
        distance = float(torch.linalg.vector_norm(found[name] - expected[name]))
        size = max(float(torch.linalg.vector_norm(expected[name])), floor)
        errors[name] = distance / size if size else math.inf if distance else 0.0
    return errors


def step_rows(
    networks: Mapping[str, nn.Module | str],
    step: Callable[[nn.Module], None],
    *,
    repeats: int,
    budget: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Row]:
    """Peak and held bytes, and the duration of a step, by method.

    A method that fails, or whose peak passes the budget, is not timed: ``step_seconds`` is None then, and ``error``
    says why.

    Args:
        networks: By method, the network, or the reason why there is none.
        step: Runs a training step.
        repeats: Timed steps of each method.
        budget: Bytes that a step may take beside parameters and gradients.
        advance: Called once for each method.
    """
    rows: dict[str, Row] = {}
    timed: dict[str, nn.Module] = {}
    for name, network in networks.items():
        advance()
        rows[name] = {"peak_bytes": None, "saved_bytes": None, "step_seconds": None}
        if isinstance(network, str):
            rows[name]["error"] = network
            continue
        try:
            memory = step_memory(network, step)
        except FAILURES as error:
            rows[name]["error"] = reason(error)
            continue
        rows[name].update(peak_bytes=memory.peak_bytes, saved_bytes=memory.saved_bytes)
        if budget is not None and memory.peak_bytes > budget:
            rows[name]["error"] = OVER_BUDGET
        else:
            timed[name] = network
    for name, seconds in step_seconds(timed, step, repeats=repeats).items():
        rows[name]["step_seconds"] = seconds
    return rows


def built(
    builds: Mapping[str, Callable[[nn.Module, Tensor], nn.Module]], model: nn.Module, step: TrainingStep
) -> dict[str, nn.Module | str]:
    """By method, the network made from the model and the step's input, or the reason why it cannot be made."""
    found: dict[str, nn.Module | str] = {}
    with step.autocast():
        for name, build in builds.items():
            try:
                found[name] = build(model, step.x)
            except FAILURES as error:
                found[name] = reason(error)
    return found


def reason(error: Exception) -> str:
    """The first line of an error's message, and the next where it ends with a colon; the error's name without any."""
    lines = [line for line in str(error).splitlines() if line]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def ratio(rows: Mapping[str, Row], method: str, key: str, to: str) -> float | None:
    """A figure of one method as a multiple of that of another; None where one of them has none."""
    value, unit = rows[method][key], rows[to][key] if to in rows else None
    return None if value is None or unit is None else value / unit
