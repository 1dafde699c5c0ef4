"""Gamma changes from step to step: recomputed training is stored training to the bit, and no scale is left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, pair, rule_in_float64, train_step
from tests.models import WIDTH, Case, Chain, ResidualMLP

EIGHT = [1 / 64, 1 / 8, 1 / 3, 1 / 2, 3 / 5, 9 / 10, 99 / 100, 1 / 100]
DOWN_AND_UP = [1 / 8, 1 / 64, 0, 0, 1 / 64, 1 / 2, 0, 9 / 10]


def rows(factor: float = 1.0) -> Tensor:
    return factor * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def chain(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return Chain([ResidualMLP() for _ in range(depth)])


def trained(net: nn.Module, gammas: Iterable[float], factors: Iterable[float]) -> list[Tensor]:
    """A step at each gamma, on rows of each size: what the parameters are at the end, and all outputs."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    found = []
    for gamma, factor in zip(gammas, factors, strict=True):
        mn.set_gamma(net, gamma)
        optimizer.zero_grad()
        output = net(rows(factor))
        (loss_of(output) / factor**2).backward()
        optimizer.step()
        found.append(output.detach())
    return [*found, *(parameter.detach().clone() for parameter in net.parameters())]


@pytest.mark.parametrize("gammas", [EIGHT, DOWN_AND_UP], ids=["eight", "down and up"])
@pytest.mark.parametrize("factors", [[1] * 8, [1, 50, 3000, 1, 2e5, 1, 1e6, 1]], ids=["even", "outgrowing"])
@pytest.mark.parametrize("depth", [4, 20])
def test_training_through_gammas_has_the_bits_of_stored_training(
    depth: int, factors: list[float], gammas: list[float]
) -> None:
    model = chain(depth)
    stored, reversible, checkpointed = (
        trained(mn.convert(model, rows(), backward=backward), gammas, factors)
        for backward in ("stored", "reversible", "checkpointed")
    )
    assert all(value.isfinite().all() for value in stored)
    assert all(map(torch.equal, reversible, stored))
    assert all(map(torch.equal, checkpointed, stored))


def test_every_network_at_eight_gammas(case: Case) -> None:
    stored, reversible = pair(case)
    for gamma in EIGHT:
        for net in (stored, reversible):
            mn.set_gamma(net, gamma)
            net.zero_grad(set_to_none=True)
        assert_same(train_step(reversible, case.example()), train_step(stored, case.example()))


def test_backward_belongs_to_the_forward_before_the_change() -> None:
    net = mn.convert(chain(4), rows(), gamma=1 / 2, backward="reversible")
    expected = train_step(copy.deepcopy(net), (rows(),))
    loss = loss_of(net(rows()))
    mn.set_gamma(net, 9 / 10)
    loss.backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, expected.gradients[name]), name


@pytest.mark.parametrize("change", [0, 9 / 10])
def test_a_pass_under_way_keeps_its_gamma(change: float) -> None:
    """Gamma 0 leaves blocks as they are, but not in the middle of a pass: its velocity would be lost without a word."""
    net = mn.convert(chain(4), rows(), gamma=1 / 2, backward="reversible")
    expected = train_step(copy.deepcopy(net), (rows(),))
    hook = net.blocks[1].register_forward_hook(lambda *_: mn.set_gamma(net, change))
    output = net(rows())
    hook.remove()
    assert torch.equal(output, expected.output)
    loss_of(output).backward()
    assert torch.equal(net.blocks[0].inner[0].weight.grad, expected.gradients["blocks.0.inner.0.weight"])


class Outgrowing(nn.Module):
    """x + scale tanh(W x): its second call is far larger than its first."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.inner = scale, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.inner(x))


def test_what_was_learnt_at_a_small_gamma_is_no_coarse_scale_at_a_large_one() -> None:
    """Short float32 streams use 22 bits up to gamma 1/2 and 29 above it: a scale learnt there says nothing here."""
    torch.manual_seed(0)
    net = mn.MomentumNet([Outgrowing(scale) for scale in (1, 1, 3000, 1)], 1 / 8, use_backprop=False)
    for _ in range(3):
        train_step(net, (rows(),))
    (stream,) = mn.training_state(net)["streams"].values()
    assert stream["scale"]["reached"]  # or this test would show nothing
    mn.set_gamma(net, 9 / 10)
    fresh = mn.MomentumNet(net.functions, 9 / 10, use_backprop=False)
    errors = []
    with torch.no_grad():
        expected = rule_in_float64(copy.deepcopy(net).double(), rows().double())
    for candidate in (net, fresh):
        train_step(candidate, (rows(),))
        output = train_step(candidate, (rows(),)).output.double()
        errors.append(float((output - expected).norm() / expected.norm()))
    assert errors[0] <= 2 * errors[1]
