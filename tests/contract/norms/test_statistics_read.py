"""Blocks whose own code reads running statistics, or moves buffers by a kernel that counts nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.buffers import statistics_read
from tests.contract.branches import WIDTH
from tests.contract.reference import assert_same, train_step

WAYS = [{"backward": "reversible"}, {"backward": "checkpointed"}, {"backward": "reversible", "others": "checkpoint"}]
Step = Callable[["Block", Tensor], Tensor]


def reading_the_count(block: Block, x: Tensor) -> Tensor:
    rate = 1 / (1 + block.norm.num_batches_tracked.float())
    return block.norm(x) * rate


def reading_the_mean(block: Block, x: Tensor) -> Tensor:
    mean = block.norm.running_mean.clone()
    return block.norm(x) - mean


def asking_for_the_buffer(block: Block, x: Tensor) -> Tensor:
    mean = block.norm.get_buffer("running_mean").clone()
    return block.norm(x) - mean


def reading_in_between(block: Block, x: Tensor) -> Tensor:
    y = block.norm(x)
    return block.norm(y * block.norm.running_var.clone())


def toggled(block: Block, x: Tensor) -> Tensor:
    y = torch.tanh(block.norm(x))
    block.norm.eval()
    y = block.norm(y)
    block.norm.train()
    return y


def on_buffers_of_its_own(block: Block, x: Tensor) -> Tensor:
    y = nn.functional.batch_norm(x, block.mean, block.variance, training=True)
    return y * block.variance.mean()


def plainly(block: Block, x: Tensor) -> Tensor:
    return block.norm(x)


class Block(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.layer, self.norm, self.step = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), step
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("variance", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.step(self, self.layer(x)))


def rows() -> Tensor:
    return torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 + 1


def model_of(step: Step) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[Block(step) for _ in range(3)])


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "step",
    [reading_the_count, reading_the_mean, asking_for_the_buffer, reading_in_between, toggled, on_buffers_of_its_own],
)
def test_gradients_are_those_of_stored_activations(step: Step, way: dict[str, Any]) -> None:
    found, stored = (mn.convert(model_of(step), rows(), **options) for options in (way, {"backward": "stored"}))
    for _ in range(3):
        assert_same(train_step(found, (rows(),)), train_step(stored, (rows(),)), tolerance=0.0)
    if step is toggled:  # what autograd saves of it are the statistics themselves, which a second forward moves
        return
    for net in (found, stored):  # two forwards in front of their backwards
        net.zero_grad()
        losses = [net(factor * rows()).square().mean() for factor in (1, -2)]
        losses[1].backward()
        losses[0].backward()
    for one, other in zip(found.parameters(), stored.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad) if other.grad is not None else one.grad is None


def test_norms_that_were_frozen_at_first() -> None:
    nets = [mn.convert(model_of(reading_the_count), rows(), backward=kind) for kind in ("reversible", "stored")]
    for training in (False, True, True):
        for net in nets:
            for block in net:
                block.norm.train(training)
        outcomes = [train_step(net, (rows(),)) for net in nets]
        assert_same(outcomes[0], outcomes[1], tolerance=0.0)


def test_statistics_that_nobody_reads_are_not_kept() -> None:
    getattr_of_torch = nn.Module.__getattr__
    net = mn.convert(model_of(plainly), rows())
    for _ in range(2):
        train_step(net, (rows(),))
    assert all(statistics_read.learned_of(block).places == set() for block in net)
    assert nn.Module.__getattr__ is getattr_of_torch


def test_a_first_call_that_raises_leaves_no_trace() -> None:
    getattr_of_torch = nn.Module.__getattr__
    net = mn.convert(model_of(reading_the_count), rows())
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        net(torch.randn(16, WIDTH + 1))
    assert nn.Module.__getattr__ is getattr_of_torch
    stored = mn.convert(model_of(reading_the_count), rows(), backward="stored")
    assert_same(train_step(net, (rows(),)), train_step(stored, (rows(),)), tolerance=0.0)


def reading_the_state_dict(block: Block, x: Tensor) -> Tensor:
    mean = block.norm.state_dict()["running_mean"].clone()
    return block.norm(x) - mean


def test_what_is_not_seen_is_refused_with_what_to_do() -> None:
    net = mn.convert(model_of(reading_the_state_dict), rows())
    with pytest.raises(mn.ReconstructionError, match=r"by attribute \(norm\.running_mean\)"):
        train_step(net, (rows(),))


def popped(table: Any) -> Tensor:
    table["running_mean"] = mean = table.pop("running_mean")
    return mean


@pytest.mark.parametrize(
    "look",
    [
        popped,
        lambda table: table["running_mean"],
        lambda table: table.setdefault("running_mean", None),
        lambda table: {**table}["running_mean"],
        lambda table: dict(table)["running_mean"],
        lambda table: (table | {})["running_mean"],
        lambda table: ({} | table)["running_mean"],
        lambda table: next(iter(table.values())),
        lambda table: dict(table.copy())["running_mean"],
    ],
)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_statistics_that_a_block_moves_behind_its_norm_move_once(
    look: Callable[[Any], Tensor], way: dict[str, Any]
) -> None:
    def moving(block: Block, x: Tensor) -> Tensor:
        y = block.norm(x)
        look(block.norm._buffers).data.add_(1.0)
        return y

    net, stored = (mn.convert(model_of(moving), rows(), **options) for options in (way, {"backward": "stored"}))
    for _ in range(2):
        assert_same(train_step(net, (rows(),)), train_step(stored, (rows(),)), tolerance=0.0)


class TwoNorms(nn.Module):
    """Its code reads the statistics of both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norms = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        for norm in self.norms:
            variance = norm.running_var.clone()
            y = norm(y) * variance
        return x + torch.tanh(y)


def other_norms_move(block: TwoNorms, step: int) -> None:
    """One of them is frozen, and then the other one: as many move as before."""
    for number, norm in enumerate(block.norms):
        norm.train(number == step)


def a_module_comes_in_front(block: TwoNorms, step: int) -> None:
    if step:
        modules = dict(block._modules)
        block._modules.clear()
        block._modules.update(adapter=nn.Identity(), **modules)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("change", [other_norms_move, a_module_comes_in_front])
def test_blocks_may_change_after_their_first_call(change: Callable[[TwoNorms, int], None], way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[TwoNorms() for _ in range(3)])
    nets = [mn.convert(model, rows(), **options) for options in ({"backward": "stored"}, way)]
    for step in range(2):
        for net in nets:
            for block in net:
                change(block, step)
        expected, got = (train_step(net, (rows(),)) for net in nets)
        assert_same(got, expected, tolerance=0.0)


def test_another_function_in_the_place_of_getattr_may_come_and_go_while_a_block_is_watched() -> None:
    norm, found, before = nn.BatchNorm1d(WIDTH), set[tuple[int, str]](), nn.Module.__getattr__
    try:
        with statistics_read.reads_noted([norm], found):
            standing = nn.Module.__getattr__
            nn.Module.__getattr__ = lambda module, name: standing(module, name)  # another thread begins to trace
        nn.Module.__getattr__ = standing  # and ends
        with statistics_read.reads_noted([norm], found):
            assert norm.running_mean is not None
        assert found == {(id(norm), "running_mean")}
        assert nn.Module.__getattr__ is before
    finally:
        nn.Module.__getattr__ = before
