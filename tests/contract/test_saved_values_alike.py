"""Saved values that may differ between passes, or look alike: none of them is taken for a fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.chains import nets, rows
from tests.contract.read_counts import reads
from tests.contract.reference import assert_same, loss_of, train_step
from tests.models import WIDTH, Chain, ResidualMLP


class Everything(ResidualMLP):
    """Saves what differs between passes but not between a first run and its recompute."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.var = torch.zeros(WIDTH), torch.ones(WIDTH)  # no buffers: nobody puts them back
        self.register_buffer("places", torch.arange(WIDTH))
        self.register_buffer("average", torch.zeros(WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        f = F.batch_norm(self.inner(x), self.mean, self.var, training=True)
        f = F.dropout(f[:, self.places], 0.2) * (torch.rand(WIDTH) > 0.5).to(x.dtype)
        self.average = 0.9 * self.average + 0.1 * f.detach().mean(0)
        f = f * self.average + F.max_pool1d(f, 2, 1, padding=1)[:, :WIDTH]
        f = f.masked_fill(f > 2, 0.5) + self.attention(f[None], f[None], f[None], need_weights=False)[0][0]
        return x + f[:, torch.randperm(WIDTH)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_may_differ_between_runs_is_no_fault(dtype: torch.dtype) -> None:
    outcomes = []
    for net in nets(Everything):
        for block in net.blocks:
            block.mean, block.var = torch.zeros(WIDTH, dtype=dtype), torch.ones(WIDTH, dtype=dtype)
        net = net.to(dtype)
        outcomes.append([train_step(net, (rows().to(dtype),)) for _ in range(2)])
    for stored, reversible in zip(*outcomes, strict=True):
        assert_same(reversible, stored)


def test_nothing_is_read_for_it() -> None:
    _, net = nets(Everything)
    for _ in range(2):
        with reads() as counts:
            loss_of(net(rows())).backward()
    assert counts.total() <= 2, counts


def test_a_retained_graph_and_second_derivatives() -> None:
    """What is filled in anew for a second backward is compared as well, and agrees."""
    gradients = []
    for net in nets(Everything):
        torch.manual_seed(3)
        loss = loss_of(net(rows()))
        first = torch.autograd.grad(loss, net.head.weight, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), net.stem.weight, retain_graph=True)[0]
        gradients.append((first.detach(), second, torch.autograd.grad(loss, net.stem.weight)[0]))
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected)


def test_compiled_blocks() -> None:
    _, net = nets(ResidualMLP)
    _, expected = nets(ResidualMLP)
    for block in net.blocks:
        block.compile(backend="aot_eager")
    got, expected = (train_step(model, (rows(),)) for model in (net, expected))
    torch.testing.assert_close(got.gradients, expected.gradients)


class LargeFactor(ResidualMLP):
    """Saves the last value with a gradient, and then a large factor without one."""

    def forward(self, x: Tensor) -> Tensor:
        f = torch.tanh(self.inner(x))
        factor = (torch.arange(f.numel()) % 3).to(f.dtype).reshape(f.shape)
        return x + f * factor


def test_large_tensors_are_compared_each_with_its_own() -> None:
    torch.manual_seed(0)
    chain, x = Chain([LargeFactor() for _ in range(3)]), torch.randn(20_000, WIDTH)
    stored, net = (
        mn.convert(chain, x, streams=["blocks"], backward=backward) for backward in ("stored", "checkpointed")
    )
    for _ in range(3):  # from the second step on recomputes end with the last value that is saved
        assert_same(train_step(net, (x,)), train_step(stored, (x,)))


class Skewed(nn.Module):
    """Two buffers are rows of one tensor: indices, as `torch.triu_indices` gives them."""

    def __init__(self) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(8, 8, 1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.values = nn.Parameter(torch.linspace(-1, 1, len(rows)))

    def forward(self, x: Tensor) -> Tensor:
        matrix = torch.zeros(8, 8)
        matrix[self.rows, self.columns] = self.values
        return x + torch.tanh(x @ (matrix - matrix.T))


@pytest.mark.parametrize("way", [{"backward": "reversible"}, {"backward": "checkpointed"}, {"others": "checkpoint"}])
def test_buffers_in_one_storage(way: dict[str, Any]) -> None:
    model, x = nn.Sequential(*[Skewed() for _ in range(4)]), torch.randn(6, 8)
    gradients = []
    for options in (way, {"backward": "stored"}):
        net = mn.convert(model, x, **options)
        net(x).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for found, stored in zip(*gradients, strict=True):
        assert torch.equal(found, stored)
