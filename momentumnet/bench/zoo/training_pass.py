"""One training step of any model: its call, a scalar loss of whatever it returns, and the gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.bench.measuring.training_step import errors_by_parameter
from momentumnet.streams.tracing.trace import call_with_example

# Below this part of the largest gradient of a parameter, one is rounding noise (a bias in front of a norm has none).
NOISE = 1e-7


def loss(output: object) -> Tensor:
    """The mean square distance from 1 of every floating tensor in the output, summed: heads may start at zero."""
    terms = [
        (leaf.float() - 1).square().mean()
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad
    ]
    return torch.stack(terms).sum()


def forward(model: nn.Module, example: object, *, seed: int = 2) -> Tensor:
    """The loss of one training step; dropout draws the same each time."""
    torch.manual_seed(seed)
    return loss(call_with_example(model, example))


def step(model: nn.Module, example: object, found: dict[str, Tensor], *, seed: int = 2) -> None:
    """One training step, which puts the gradients into ``found``, by parameter."""
    model.zero_grad(set_to_none=True)
    forward(model, example, seed=seed).backward()
    found.update({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})


def gradients(model: nn.Module, example: object, *, seed: int = 2) -> dict[str, Tensor]:
    """The gradients of one training step, by parameter."""
    found: dict[str, Tensor] = {}
    step(model, example, found, seed=seed)
    return found


def largest_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative L2 error of one parameter's gradient; infinite where one of the two has none.

    Where the expected gradient is rounding noise, the error is relative to that noise.
    """
    floor = NOISE * max((float(gradient.norm()) for gradient in expected.values()), default=0.0)
    errors = [0.0, *errors_by_parameter(got, expected, floor=floor).values()]
    return float(torch.tensor(errors).max())  # NaN where one of them is
