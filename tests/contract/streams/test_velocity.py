"""The velocity of a stream: where it begins and ends, and calls between blocks that would lose it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.parents import BACKWARDS, Looped, Parent, converted, straight
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP


def glued(parent: Parent, x: Tensor) -> Tensor:
    a, b, c = parent.blocks
    return c(b(parent.glue(a(x))))


def changed_in_place(parent: Parent, x: Tensor) -> Tensor:
    a, b, c = parent.blocks
    return c(b(a(x).mul_(2)))


def out_of_order(parent: Parent, x: Tensor) -> Tensor:
    a, b, c = parent.blocks
    return c(a(b(x)))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("run", [glued, changed_in_place, out_of_order])
def test_lost_velocity_is_an_error_that_names_blocks(run: Any, gradients: bool) -> None:
    net = mn.convert(Parent(run), streams=["blocks"])
    with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match=r"blocks\.[01].*blocks\.[01]"):
        net(torch.randn(5, WIDTH))


@pytest.mark.parametrize("skipped", [0, 1])
def test_skipped_block_is_fine(skipped: int) -> None:
    """Layer drop: a block left out of a step; the others go on with the velocity."""

    def run(parent: Parent, x: Tensor) -> Tensor:
        for index, block in enumerate(parent.blocks):
            if index != skipped or not parent.training:
                x = block(x)
        return x

    torch.manual_seed(0)
    model, x = Parent(run).train(), torch.randn(5, WIDTH)
    outcomes = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, x, backward=backward)
        outcomes.append(train_step(net, (x,)))
    assert_same(outcomes[1], outcomes[0])
    used = [f"blocks.{index}.inner.0.weight" for index in range(3) if index != skipped]
    assert all(outcomes[1].gradients[name] is not None for name in used)


def test_two_passes_at_once_do_not_mix() -> None:
    torch.manual_seed(0)
    model = Parent(straight)
    net = mn.convert(model, torch.randn(5, WIDTH), backward="reversible")
    x, y = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    a, b, c = net.blocks
    px, py = a(x), a(y)
    px, py = b(px), b(py)
    assert torch.equal(c(px), net(x))
    assert torch.equal(c(py), net(y))


@pytest.mark.parametrize("initial", [None, "branch", "module"])
@pytest.mark.parametrize("final", ["flush", "drop"])
@pytest.mark.parametrize("arithmetic", ["exact", "float"])
def test_initial_and_final_velocity_against_the_rule(initial: Any, final: str, arithmetic: str) -> None:
    torch.manual_seed(0)
    model, start, gamma = Parent(straight).double(), nn.Linear(WIDTH, WIDTH).double(), 0.5
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    net = mn.convert(
        model,
        x,
        gamma=gamma,
        initial_velocity=start if initial == "module" else initial,
        final_velocity=final,
        arithmetic=arithmetic,
    )
    y = x
    v = {None: lambda: torch.zeros_like(x), "branch": lambda: model.blocks[0].inner(x), "module": lambda: start(x)}[
        initial
    ]()
    for block in model.blocks:
        v = gamma * v + (1 - gamma) * block.inner(y)
        y = y + v
    if final == "flush":
        y = y + gamma / (1 - gamma) * v
    expected = torch.autograd.grad(y.square().sum(), [*model.blocks.parameters()])
    output = net(x)
    torch.testing.assert_close(output, y, rtol=1e-10, atol=1e-12)
    output.square().sum().backward()
    for parameter, gradient in zip(model.blocks.parameters(), expected, strict=True):
        name = next(name for name, other in model.named_parameters() if other is parameter)
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_layer_drop_of_the_last_block_and_then_of_the_first(backward: str) -> None:
    """The loss of the step before is still alive when the next forward begins, as in any training loop."""

    def run(parent: Looped, x: Tensor) -> Tensor:
        for index, block in enumerate(parent.blocks):
            if index != parent.skipped:
                x = block(x)
        return x

    net, x = converted(Looped(run), backward), torch.randn(5, WIDTH)
    net.skipped = 3
    loss = net(x).sum()
    loss.backward()
    net.skipped = 0
    loss = net(x).sum()
    loss.backward()


def test_initial_velocity_of_a_sequential_block_is_refused() -> None:
    """nn.Sequential would call it as one of its own modules."""
    model = nn.Sequential(*[nn.Sequential(ResidualMLP(), ResidualMLP()) for _ in range(2)])
    with pytest.raises(mn.ConversionError, match=r"'0'.*Sequential.*initial_velocity"):
        mn.convert(model, streams=[""], initial_velocity=nn.Linear(WIDTH, WIDTH))
