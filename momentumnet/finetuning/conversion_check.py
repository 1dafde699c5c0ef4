"""Whether a converted network trains as it should: its gradients beside those of stored activations, and its costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from momentumnet.bench.measuring.probe import StepCost, step_costs, untouched
from momentumnet.bench.measuring.training_step import errors_by_parameter, relative_error
from momentumnet.command_errors import UsageError
from momentumnet.streams.blocks.nested import floating, tensors_in
from momentumnet.streams.tracing.python_generators import python_generators_kept
from momentumnet.streams.tracing.trace import call_with_example

LIMIT = 1e-5
# A gradient of less than this part of the whole one's norm is rounding (a bias in front of a norm): it is measured by
# that part.
SMALLEST = 1e-6
SEED = 0
BEFORE, AFTER = "unconverted", "momentum"


@dataclass(frozen=True)
class Check:
    """What a conversion came to.

    Attributes:
        costs: Of a training step, by network: `BEFORE` and `AFTER`.
        errors: Of each parameter's gradient: L2 distance from the gradient with stored activations, by its norm.
        output_change: L2 distance of the outputs in eval mode from those of the unconverted network, by their norm.
    """

    costs: dict[str, StepCost]
    errors: dict[str, float]
    output_change: float

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter with the largest error, and that error; NaN is the largest."""
        return max(self.errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    @property
    def passed(self) -> bool:
        """Whether all gradients agree to `LIMIT`."""
        return self.worst[1] <= LIMIT


def check(
    model: nn.Module,
    inputs: Any,
    *,
    stored: Callable[[], nn.Module],
    converted: Callable[[], nn.Module],
    repeats: int = 3,
) -> Check:
    """Makes a training step with each network, on the same values and random numbers.

    Args:
        model: The unconverted network.
        inputs: As `momentumnet.convert` takes them.
        stored: Converts a copy, with stored activations: the reference.
        converted: Converts a copy.
        repeats: Timed steps of each network.

    Raises:
        UsageError: No gradient comes to a parameter.
    """
    reference = _gradients(stored(), inputs)
    if not reference:
        raise UsageError("no parameter of the network gets a gradient, so there is nothing to compare")
    network = converted()
    errors = _errors(_gradients(network, inputs), reference)
    change = relative_error(_outputs(network, inputs), _outputs(model, inputs))
    costs = step_costs({BEFORE: model, AFTER: network}, lambda network: _step(network, inputs), repeats=repeats)
    return Check(costs, errors, change)


def _step(network: nn.Module, inputs: Any) -> None:
    network.train()
    _loss(call_with_example(network, inputs)).backward()


def _loss(output: Any) -> Tensor:
    """The output's own loss, or the distance from random values of all that it holds.

    A sum, or a sum of squares, is a constant behind a norm, and its gradient is rounding.
    """
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    generator = torch.Generator().manual_seed(SEED)
    terms = []
    for tensor in tensors_in(output):
        if floating(tensor) and tensor.requires_grad:
            target = torch.randn(tensor.shape, generator=generator).to(tensor.device)
            terms.append((tensor.float() - target).square().mean())
    if not terms:
        raise UsageError("the network's output holds no floating-point tensor that depends on its parameters")
    return torch.stack(terms).sum()


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers each time, also of Python and NumPy: transformers draws masks of speech by NumPy."""
    with python_generators_kept():
        torch.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002 (what others draw from)
        yield


def _gradients(network: nn.Module, inputs: Any) -> dict[str, Tensor]:
    with untouched([network]), _seeded():
        network.zero_grad(set_to_none=True)
        _step(network, inputs)
        return {name: value.grad.double() for name, value in network.named_parameters() if value.grad is not None}


def _errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    norms = [float(torch.linalg.vector_norm(gradient)) for gradient in expected.values()]
    return errors_by_parameter(found, expected, floor=SMALLEST * math.hypot(*norms))


def _outputs(network: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad(), untouched([network]), _seeded():
        output = call_with_example(network.eval(), inputs)
    return torch.cat([tensor.double().flatten() for tensor in tensors_in(output) if floating(tensor)])
