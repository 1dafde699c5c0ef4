"""Contract line 2: no wrong gradient in silence, where a recompute is not what the forward was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.contract.unequal_blocks import (
    Overwriting,
    ReadingABuffer,
    Shuffling,
    TwoPaths,
    Undetermined,
    ZeroNorm,
    ZeroScaled,
    chain_of,
)
from tests.models import WIDTH, Chain, ResidualMLP


@pytest.mark.parametrize("middle", [Undetermined, Shuffling, TwoPaths])
def test_block_that_is_not_deterministic_raises(middle: type[nn.Module]) -> None:
    net = chain_of(middle)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1"):
        loss.backward()


def test_block_that_overwrites_its_input_raises() -> None:
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1.*in place"):
        chain_of(Overwriting)(torch.randn(5, WIDTH))


@pytest.mark.parametrize("middle", [ResidualMLP, ZeroScaled])
def test_parameter_changed_between_forward_and_backward_raises(middle: type[nn.Module]) -> None:
    net = chain_of(middle)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with torch.no_grad():
        net.get_parameter("blocks.1.inner.0.weight").mul_(1.5)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1.*inner|blocks\.1.*weight"):
        loss.backward()


@pytest.mark.parametrize("changed", [torch.float64, torch.bfloat16])
def test_parameters_of_another_type_in_backward_are_named(changed: torch.dtype) -> None:
    """Changed through .data, which no counter counts: the error is that, and not the block's own."""
    net = chain_of(ResidualMLP)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    net.blocks.to(changed)
    with pytest.raises(mn.ReconstructionError, match=f"parameter 'weight' was torch.float32 .* is {changed} now"):
        loss.backward()


@pytest.mark.parametrize(("middle", "buffer"), [(ReadingABuffer, "mask"), (ZeroNorm, "norm.running_mean")])
def test_buffer_changed_between_forward_and_backward_raises(middle: type[nn.Module], buffer: str) -> None:
    net = chain_of(middle).eval()
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with torch.no_grad():
        net.get_buffer(f"blocks.1.{buffer}").add_(1)
    with pytest.raises(mn.ReconstructionError, match=rf"blocks\.1.*buffer '{buffer.rpartition('.')[2]}' was changed"):
        loss.backward()


def test_running_statistics_of_a_further_forward_leave_backward_alone() -> None:
    net = chain_of(ZeroNorm)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    net(torch.randn(5, WIDTH))
    loss.backward()


def with_checkpointed_head(run: Any, others: str = "checkpoint") -> nn.Module:
    """A stream, and after it a module that is recomputed too, called as the given function says."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return run(self.inner, x)

    torch.manual_seed(0)
    chain = Chain([ResidualMLP(), ResidualMLP()])
    chain.head = Head()
    return mn.convert(chain, (torch.randn(5, WIDTH),), others=others)


def test_checkpointed_module_that_is_not_deterministic_raises() -> None:
    generator = torch.Generator().manual_seed(0)
    net = with_checkpointed_head(lambda inner, x: torch.tanh(inner(x) + torch.randn(WIDTH, generator=generator)))
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="'head'"):
        loss.backward()


def test_what_a_checkpointed_module_adds_behind_all_that_it_saves_is_compared_once() -> None:
    """It changes no gradient, but only a recompute that runs to its end shows what follows there."""
    generator = torch.Generator().manual_seed(0)
    net = with_checkpointed_head(lambda inner, x: torch.tanh(inner(x)) + torch.randn(WIDTH, generator=generator))
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="'head' did not compute the same"):
        loss.backward()


def test_checkpointed_module_that_overwrites_its_input_is_kept() -> None:
    x, gradients = torch.randn(5, WIDTH), []
    for others in ("checkpoint", "keep"):
        net = with_checkpointed_head(lambda inner, x: inner(torch.relu_(x)), others=others)
        loss_of(net(x)).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_checkpointed_module_that_overwrites_its_input_in_training_alone_raises() -> None:
    net = with_checkpointed_head(lambda inner, x: inner(torch.relu_(x) if inner.training else x))
    with pytest.raises(mn.ReconstructionError, match=r"'head'.*in place"):
        net(torch.randn(5, WIDTH))


def test_side_input_changed_between_forward_and_backward_raises() -> None:
    class Biased(ResidualMLP):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return x + self.inner(x + bias)

    net = mn.convert(Chain([Biased(), Biased()]), streams=["blocks"])
    bias = torch.randn(WIDTH)
    loss = loss_of(net(torch.randn(5, WIDTH), bias))
    bias.add_(1)
    with pytest.raises(mn.ReconstructionError, match="argument"):
        loss.backward()


def test_saved_tensor_changed_in_place_inside_the_block_raises() -> None:
    class Changing(ResidualMLP):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.exp(self.inner(x))  # exp saves its result
            return x + y.mul_(2)

    net = chain_of(Changing)
    loss = loss_of(net(torch.randn(5, WIDTH)))
    with pytest.raises(mn.ReconstructionError, match="in place"):
        loss.backward()
