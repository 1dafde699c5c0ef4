"""The reference of the contract: the same converted network with stored activations, run from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import Case

# What converts a network by another coupling than momentum. Every beta has its tests in `test_couplings`.
COUPLED: tuple[dict[str, Any], ...] = ({"coupling": "bdia"}, {"coupling": mn.Dr2Net(alpha=0.9, beta=0.1)})


@dataclass
class Outcome:
    """What a training step left behind."""

    output: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    generator: Tensor


def loss_of(output: Tensor) -> Tensor:
    return output.float().square().mean()


def pair(case: Case, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The case converted twice: stored and reversible."""
    model, example = case.model(), case.example()
    return (
        mn.convert(model, example, backward="stored", **options),
        mn.convert(model, example, backward="reversible", **options),
    )


def train_step(
    net: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    backward: Callable[[Tensor], None] | None = None,
    seed: int = 3,
) -> Outcome:
    """Forward and backward from a seed; gradients of parameters and of the inputs that can have them."""
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    torch.manual_seed(seed)
    output = net(*inputs)
    if backward is None:
        loss_of(output).backward()
    else:
        backward(output)
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    gradients |= {f"input {index}": x.grad for index, x in enumerate(inputs)}
    return Outcome(
        output.detach(),
        {name: None if grad is None else grad.clone() for name, grad in gradients.items()},
        {name: buffer.clone() for name, buffer in net.named_buffers()},
        torch.get_rng_state(),
    )


def relative_error(got: Outcome, expected: Outcome) -> float:
    """L2 norm of the difference of all gradients over that of the expected ones; which are None must agree."""
    assert {name for name, grad in got.gradients.items() if grad is None} == {
        name for name, grad in expected.gradients.items() if grad is None
    }
    names = [name for name, grad in expected.gradients.items() if grad is not None]
    a = torch.cat([got.gradients[name].double().flatten() for name in names])
    b = torch.cat([expected.gradients[name].double().flatten() for name in names])
    assert b.norm() > 0
    return float((a - b).norm() / b.norm())


def assert_same(got: Outcome, expected: Outcome, tolerance: float = 1e-6) -> None:
    """Outputs, gradients, buffers and generators of two training steps agree."""
    assert torch.equal(got.output, expected.output)
    assert relative_error(got, expected) <= tolerance
    for name, buffer in expected.buffers.items():
        assert torch.equal(got.buffers[name], buffer), name
    assert torch.equal(got.generator, expected.generator)


def assert_gradients_as_stored(model: nn.Module, x: Tensor, *, rtol: float, atol: float) -> None:
    """The gradients of the model, converted with nothing named, are those of stored activations."""
    gradients = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, x, backward=backward)
        net(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.grad is not None])
    for stored, reversible in zip(*gradients, strict=True):
        torch.testing.assert_close(reversible, stored, rtol=rtol, atol=atol)


def assert_same_beyond_the_scale(build: Callable[[str], nn.Module], rows: Callable[[float], Tensor]) -> None:
    """Steps on values that outgrow the learned scale, and on NaN, leave the same with stored activations and without.

    Args:
        build: the network, "stored" or "reversible".
        rows: the input, times a factor.
    """
    found = []
    for how in ("stored", "reversible"):
        net, steps = build(how), []
        for factor in (1, 3000, 1, float("nan"), 1, 1e7):
            net.zero_grad(set_to_none=True)
            steps.append(train_step(net, (rows(factor),)))
        found.append(steps)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours.output, theirs.output, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours.gradients, theirs.gradients, rtol=0, atol=0, equal_nan=True)


def rule_in_float64(net: mn.MomentumNet, x: Tensor, grid: float | None = None) -> Tensor:
    """The rule of the paper, written out; ordinary autograd differentiates it.

    With a ``grid``, x and what is added to v are rounded to its multiples, rounding taken for the identity.
    """

    def rounded(values: Tensor) -> Tensor:
        return values if grid is None else values + ((values / grid).round() * grid - values).detach()

    x, v, gamma = rounded(x), torch.zeros_like(x), float(net.stream.gamma)
    for function in net.functions:
        v = gamma * v + rounded((1 - gamma) * function(x))
        x = rounded(x + v)
    return x
