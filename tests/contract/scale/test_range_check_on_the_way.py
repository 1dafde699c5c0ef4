"""Gradients that are taken on the way through a stream whose range is checked with backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import momentumnet as mn
from tests.contract.outside.kept_blocks import DEPTH, chain, converted
from tests.contract.read_counts import Growing, blocks, rows
from tests.contract.scale.late_checks import WideGrowing, late


def test_a_gradient_that_is_taken_on_the_way_is_checked() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    net.blocks[1].factor = 1e6
    x = rows().requires_grad_()
    h = net.blocks[2](net.blocks[1](net.blocks[0](x)))
    with pytest.raises(mn.StateRangeError):
        torch.autograd.grad(h.sum(), x)


def test_a_gradient_of_a_tensor_on_the_way_is_checked_behind_the_stream() -> None:
    net = late(mn.convert(blocks(5, Growing), rows()))
    net.blocks[1].factor = 1e6
    seen: list[torch.Tensor] = []
    net.blocks[2].register_forward_hook(lambda module, args, output: seen.append(output))
    x = rows().requires_grad_()
    net(x)
    with pytest.raises(mn.StateRangeError):
        torch.autograd.grad(seen[0].sum(), x)


def check_on_the_way(net: nn.Module, place: int) -> None:
    """A loss on what a block in the middle is given alone, as a head on features has it."""
    features: list[torch.Tensor] = []
    net.blocks[place].register_forward_pre_hook(lambda module, args: features.append(args[0]))
    net(rows() * (1 if place else 1e6))
    with pytest.raises(mn.StateRangeError):
        features[0].square().sum().backward()


@pytest.mark.parametrize("options", [{"backward": way} for way in ("stored", "checkpointed", "reversible")], ids=str)
@pytest.mark.parametrize("final", ["flush", "drop"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_loss_on_the_way_alone_is_checked(options: dict[str, Any], final: str, place: int) -> None:
    net = late(mn.convert(blocks(5, Growing), rows(), final_velocity=final, **options))
    net.blocks[1].factor = 1e6
    check_on_the_way(net, place)


@pytest.mark.parametrize("kept", [2, DEPTH - 1, DEPTH])
@pytest.mark.parametrize("place", [0, 2, DEPTH - 1])
def test_a_loss_on_the_way_alone_is_checked_where_blocks_keep_their_activations(kept: int, place: int) -> None:
    net = late(converted(chain(WideGrowing), rows(), kept))
    net.blocks[1].factor = 1e6
    check_on_the_way(net, place)


@pytest.mark.parametrize("kept", [2, DEPTH - 1, DEPTH])
@pytest.mark.parametrize("in_forward", [False, True], ids=["behind_the_stream", "on_the_way"])
def test_a_gradient_that_does_not_come_to_the_start_is_checked(kept: int, in_forward: bool) -> None:
    """That of the last but one block's parameters alone, by a loss on what it returns."""
    net = late(converted(chain(WideGrowing), rows(), kept))
    net.blocks[1].factor = 1e6
    parameters = list(net.blocks[DEPTH - 2].parameters())
    taken: list[torch.Tensor] = []

    def take(_: nn.Module, args: tuple[torch.Tensor]) -> None:
        taken.append(args[0])
        if in_forward:
            torch.autograd.grad(args[0].square().sum(), parameters)

    def step() -> None:
        net(rows())
        if not in_forward:
            torch.autograd.grad(taken[0].square().sum(), parameters)

    net.blocks[DEPTH - 1].register_forward_pre_hook(take)
    with pytest.raises(mn.StateRangeError):
        step()
