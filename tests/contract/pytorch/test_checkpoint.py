"""torch.utils.checkpoint around blocks, a stream's end and whole streams."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from tests.contract.parents import BACKWARDS, Looped, converted, straight
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH


def checkpointed(*which: int, reentrant: bool) -> Any:
    def run(parent: Looped, x: Tensor) -> Tensor:
        for index, block in enumerate(parent.blocks):
            x = checkpoint(block, x, use_reentrant=reentrant) if index in which else block(x)
        return x

    return run


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("which", [(0,), (1,), (3,), (0, 1, 2, 3)])
def test_reentrant_checkpoint_around_a_block_cuts_the_velocity_and_is_refused(
    which: tuple[int, ...], backward: str
) -> None:
    net = converted(Looped(checkpointed(*which, reentrant=True)), backward)
    with pytest.raises(mn.MomentumNetError, match=r"velocity.*checkpoint"):
        net(torch.randn(5, WIDTH, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("which", [(0,), (1,), (3,), (0, 1, 2, 3)])
def test_checkpoint_without_reentry_around_a_block_works(which: tuple[int, ...], backward: str) -> None:
    torch.manual_seed(0)
    x, plain = torch.randn(5, WIDTH), Looped(straight)
    wrapped = copy.deepcopy(plain)
    wrapped.run = checkpointed(*which, reentrant=False)
    assert_same(train_step(converted(wrapped, backward), (x,)), train_step(converted(plain), (x,)))


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_of_a_streams_end_with_what_follows_is_refused(reentrant: bool, backward: str) -> None:
    def run(parent: Looped, x: Tensor) -> Tensor:
        a, b, c, d = parent.blocks
        return checkpoint(lambda x: torch.tanh(d(c(x))), b(a(x)), use_reentrant=reentrant)

    output = converted(Looped(run), backward)(torch.randn(5, WIDTH))
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.2.*middle of its stream"):
        output.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_of_a_whole_stream_works(reentrant: bool) -> None:
    torch.manual_seed(0)
    # The reentrant kind runs forward without gradients, so in floats, and its recompute in integers: at this gamma they
    # are fine enough for the two to agree.
    net, x = converted(Looped(straight), gamma=0.75), torch.randn(5, WIDTH)
    expected = train_step(net, (x,))
    net.zero_grad()
    got = train_step(lambda_module(net, lambda x: checkpoint(net, x, use_reentrant=reentrant)), (x,))
    for name, gradient in expected.gradients.items():
        if name != "input 0":
            torch.testing.assert_close(got.gradients[f"net.{name}"], gradient, rtol=1e-5, atol=1e-7)


def lambda_module(net: nn.Module, forward: Any) -> nn.Module:
    module = nn.Module()
    module.net, module.forward = net, forward
    return module
