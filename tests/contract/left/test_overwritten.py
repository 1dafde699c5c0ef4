"""Tensors that a block overwrites after autograd has saved them: refused where autograd would look, and only there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ReconstructionError
from tests.contract.branches import WIDTH, Branch, Network

EXACT: dict[str, Any] = {"gamma": 0, "backward": "checkpointed", "others": "checkpoint"}
STEPS = 4  # a module's recomputes are left early from the second step on


class Codebook(Branch):
    """Of a VQ-VAE: the nearest rows are looked up with gradients on, and moved in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(10, WIDTH))
        self.register_buffer("counts", torch.ones(10))
        self.register_buffer("sums", self.rows.clone())

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.rows).argmin(1)
        found = self.rows[nearest]
        with torch.no_grad():
            chosen = nn.functional.one_hot(nearest, 10).float()
            self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.sums.mul_(0.9).add_(chosen.t() @ x, alpha=0.1)
            self.rows.copy_(self.sums / self.counts[:, None])
        return self.branch(x + (found - x).detach())


class OwnTensor(Branch):
    def forward(self, x: Tensor) -> Tensor:
        table = self.enter.weight.detach() * 2
        nearest = torch.cdist(x, table).argmin(1)
        table.add_(1)
        return self.branch(x + table[nearest])


class LargeTensor(Branch):
    """Large enough to be looked at by itself, when it is saved."""

    def forward(self, x: Tensor) -> Tensor:
        table = (self.enter.weight.detach() * 2).repeat(200, 1)
        nearest = torch.cdist(x, table).argmin(1)
        table.add_(1)
        return self.branch(x + table[nearest])


class AtTheEnd(Branch):
    """Behind the last tensor that is saved, where a recompute has been left."""

    def forward(self, x: Tensor) -> Tensor:
        factor = self.enter.weight.detach()[:1] * 2
        largest = (x * factor).argmax(1)
        y = self.branch(x + largest[:, None])
        factor.add_(1)
        return y


class WithGradient(Branch):
    """What a number is made of is used up."""

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.sigmoid(self.enter(x))
        scale = float(seen.detach().mean())
        seen.zero_()
        return self.branch(x) * scale


class Refused(Branch):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.enter(x))
        y: Tensor = self.leave(hidden)
        hidden.zero_()
        return y


class Plain(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


def network(kind: type[Branch], *, in_blocks: bool) -> nn.Module:
    return Network(kind, Plain) if in_blocks else Network(Plain, kind)


def step(model: nn.Module, x: Tensor) -> Tensor:
    loss = model(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.01)
    return loss.detach()


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("kind", [Codebook, OwnTensor, LargeTensor, AtTheEnd, WithGradient])
def test_what_nobody_asks_for_may_be_overwritten(kind: type[Branch], *, in_blocks: bool) -> None:
    torch.manual_seed(0)
    stored = network(kind, in_blocks=in_blocks)
    converted = mn.convert(copy.deepcopy(stored), torch.randn(8, WIDTH), **EXACT)
    for _ in range(STEPS):
        x = torch.randn(8, WIDTH)
        assert torch.equal(step(converted, x), step(stored, x))
        for (name, one), (_, other) in zip(converted.named_parameters(), stored.named_parameters(), strict=True):
            assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
        for (name, one), (_, other) in zip(converted.named_buffers(), stored.named_buffers(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", [Codebook, OwnTensor, LargeTensor, AtTheEnd, WithGradient])
def test_in_a_reversible_stream(kind: type[Branch]) -> None:
    torch.manual_seed(0)
    model, x = network(kind, in_blocks=True), torch.randn(8, WIDTH)
    stored = mn.convert(model, x, gamma=1 / 8, backward="stored", others="keep")
    recomputed = mn.convert(model, x, gamma=1 / 8, backward="reversible", others="keep")
    for _ in range(STEPS):
        x = torch.randn(8, WIDTH)
        step(stored, x)
        step(recomputed, x)
        for (name, one), (_, other) in zip(recomputed.named_parameters(), stored.named_parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_what_backward_needs_may_not(*, in_blocks: bool) -> None:
    model, x = network(Refused, in_blocks=in_blocks), torch.randn(8, WIDTH)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        step(model, x)
    converted = mn.convert(model, x, **EXACT)
    with pytest.raises(ReconstructionError, match="in place after autograd has saved it"):
        step(converted, x)
