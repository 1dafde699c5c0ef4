"""Running statistics that blocks move themselves, by whatever name they reach them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.norms.two_norms import WIDTH, Block, Step, images, pair, plainly
from tests.contract.reference import assert_same, train_step


def through_methods(block: Block, x: Tensor) -> Tensor:
    for buffer in list(block.first.buffers())[:2]:
        buffer.data.mul_(0.5)
    return plainly(block, x)


def through_names(block: Block, x: Tensor) -> Tensor:
    for _, buffer in list(block.named_buffers())[:2]:
        buffer.data.mul_(0.5)
    return plainly(block, x)


def through_the_table(block: Block, x: Tensor) -> Tensor:
    buffer = block.first._buffers.get("running_mean")
    assert buffer is not None
    buffer.data.mul_(0.5)
    return plainly(block, x)


def through_a_state_dict(block: Block, x: Tensor) -> Tensor:
    block.first.state_dict()["running_var"].mul_(0.5)
    return plainly(block, x)


def assigned_anew(block: Block, x: Tensor) -> Tensor:
    block.first.running_mean = torch.zeros(WIDTH)
    return plainly(block, x)


class Shared(Block):
    """Another name, beside the norm, for its running mean."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.register_buffer("mean", self.first.running_mean)


def through_another_name(block: Block, x: Tensor) -> Tensor:
    block.mean.data.mul_(0.5)
    return plainly(block, x)


def through_both_names(block: Block, x: Tensor) -> Tensor:
    block.first.running_mean.data.add_(1)
    return through_another_name(block, x)


class Held(Block):
    """Holds its norm's running mean in a list, too."""

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.held = [self.first.running_mean]


def through_a_list(block: Block, x: Tensor) -> Tensor:
    y = plainly(block, x)
    block.held[0].data.add_(1)
    return y


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_statistics_that_are_held_beside_their_table(others: str) -> None:
    model = nn.Sequential(*[Held(through_a_list) for _ in range(3)]).train()
    stored, reversible = (
        mn.convert(model, images(), backward=kind, others=others) for kind in ("stored", "reversible")
    )
    for _ in range(3):
        assert_same(train_step(reversible, (images(),)), train_step(stored, (images(),)), tolerance=0.0)


@pytest.mark.parametrize("step", [through_another_name, through_both_names])
def test_statistics_that_have_two_names(step: Step) -> None:
    model = nn.Sequential(*[Shared(step) for _ in range(3)]).train()
    stored, reversible = (mn.convert(model, images(), backward=kind) for kind in ("stored", "reversible"))
    for _ in range(2):
        assert_same(train_step(reversible, (images(),)), train_step(stored, (images(),)), tolerance=0.0)


@pytest.mark.parametrize(
    "step", [through_methods, through_names, through_the_table, through_a_state_dict, assigned_anew]
)
def test_statistics_that_blocks_move_in_other_ways(step: Step) -> None:
    stored, reversible = pair(step)
    for _ in range(2):
        assert_same(train_step(reversible, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
