"""Bytes of networks whose first part is not trained: a step keeps nothing for it, and so no plan counts it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.streams.finding.discover import discover
from tests.models import WIDTH, Chain, ResidualMLP

BLOCKS = 6


def images() -> Tensor:
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))


def frozen(count: int, *, stem: bool = True) -> Chain:
    """A chain of which the stem and so many blocks are not trained."""
    torch.manual_seed(0)
    net = Chain([ResidualMLP() for _ in range(BLOCKS)])
    net.stem.requires_grad_(not stem)
    for block in list(net.blocks)[:count]:
        block.requires_grad_(False)
    return net


def kept_by(net: nn.Module, x: Tensor) -> int:
    """Bytes of what autograd saves in a plain forward, parameters left out."""
    parameters = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(x)
    assert output.requires_grad
    return sum(storage.nbytes() for key, storage in storages.items() if key not in parameters)


@pytest.mark.parametrize("count", [0, 1, 4, BLOCKS])
def test_what_is_in_front_of_all_that_is_trained_is_not_counted(count: int) -> None:
    net = frozen(count)
    plan = mn.plan(net, images(), gamma=0.5)
    assert plan.saved_before == kept_by(net, images())
    (row,) = plan.rows
    assert (row.saved_before == 0) == (count == BLOCKS)
    assert (row.saved_after == 0) == (count == BLOCKS)
    assert [stream.untrained for stream in plan.discovery.streams] == [count == BLOCKS]


def test_blocks_behind_a_trained_one_count() -> None:
    """Their gradient goes on to it, whether they are trained themselves or not."""
    plans = [mn.plan(frozen(count, stem=False), images(), gamma=0.5) for count in (0, BLOCKS)]
    assert plans[0].saved_before > plans[1].saved_before > BLOCKS * images().nbytes
    assert plans[1].saved_before == kept_by(frozen(BLOCKS, stem=False), images())


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_parts_outside_that_are_not_trained_free_nothing(others: str) -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, 64), nn.Tanh(), nn.Linear(64, WIDTH)),
        *[ResidualMLP() for _ in range(BLOCKS)],
        nn.Linear(WIDTH, 4),
    )
    for module in list(net)[:-1]:
        module.requires_grad_(False)
    plan = mn.plan(net, images(), gamma=0.5, others=others)
    assert plan.saved_before == plan.saved_after == kept_by(net, images()) == images().nbytes


def test_where_nothing_is_trained_the_plan_is_of_a_training_all_the_same() -> None:
    """Adapters come behind the conversion, say."""
    net, whole = frozen(BLOCKS), frozen(BLOCKS, stem=False)
    net.head.requires_grad_(False)
    plans = [mn.plan(each, images(), gamma=0.5) for each in (net, whole)]
    assert [row.saved_before for row in plans[0].rows] == [row.saved_before for row in plans[1].rows]
    assert plans[0].rows[0].saved_after == plans[1].rows[0].saved_after > 0


def test_what_can_be_recomputed_does_not_go_by_what_is_trained() -> None:
    """It may be trained later: layers are thawed one by one."""
    found = [discover(frozen(count, stem=count > 0), images()) for count in (0, BLOCKS)]
    names = [[(stage.names, stage.stream) for stage in (*one.timeline, *one.blocks)] for one in found]
    assert names[0] == names[1]
