from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from momentumnet.optim import Extragradient
from tests.optim.nets import batch, closure_of, loss_of, network, two_passes, values


def test_quadratic_in_closed_form() -> None:
    a, w0 = torch.tensor([3.0, 1.0, 0.5]).double(), torch.tensor([0.2, -1.0, 0.7]).double()
    w = w0.clone().requires_grad_()
    optimizer = Extragradient([w], SGD, lr=0.1)
    for _ in range(4):
        optimizer.step(closure_of(optimizer, lambda: (a * w * w).sum() / 2))
    torch.testing.assert_close(w.detach(), (1 - 0.1 * a * (1 - 0.1 * a)) ** 4 * w0, rtol=1e-14, atol=1e-15)


def test_converges_on_a_bilinear_saddle_where_gradient_descent_does_not() -> None:
    x, y = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = Extragradient([{"params": [x]}, {"params": [y], "maximize": True}], SGD, lr=0.3)
    for _ in range(200):
        optimizer.step(closure_of(optimizer, lambda: (x * y).sum()))
    assert x.abs() + y.abs() < 1e-3  # |1 + 0.3 i| > 1 > |1 + 0.3 i (1 + 0.3 i)|


@pytest.mark.parametrize("by_hand", [False, True])
def test_base_optimizer_gets_the_gradient_at_the_look_ahead(by_hand: bool) -> None:
    net, twin, (x, y) = network(), network(), batch()
    groups = [{"params": net[0].parameters(), "lr": 0.02}, {"params": net[2].parameters()}]
    optimizer = Extragradient(groups, AdamW, lr=0.1)
    rates = [0.02, 0.02, 0.1, 0.1]
    plain = AdamW([{"params": twin[0].parameters(), "lr": 0.02}, {"params": twin[2].parameters()}], lr=0.1)
    for _ in range(3):
        kept, parameters = values(twin), list(twin.parameters())
        gradients = torch.autograd.grad(loss_of(twin, x, y), parameters)
        ahead = network()
        with torch.no_grad():
            for q, w, g, rate in zip(ahead.parameters(), kept, gradients, rates, strict=True):
                q.copy_(w - rate * g)
        for p, g in zip(parameters, torch.autograd.grad(loss_of(ahead, x, y), list(ahead.parameters())), strict=True):
            p.grad = g
        plain.step()

        closure = closure_of(optimizer, lambda: loss_of(net, x, y))
        two_passes(optimizer, closure, by_hand=by_hand)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_parameters_come_back_and_the_state_resumes() -> None:
    x, y = batch(torch.float32)
    net, other = network(torch.float32), network(torch.float32)
    optimizer = Extragradient(net.parameters(), SGD, lr=0.5, momentum=0.9)
    closure = closure_of(optimizer, lambda: loss_of(net, x, y))
    optimizer.step(closure)
    before = values(net)
    closure()
    optimizer.first_step()
    assert not torch.equal(net[0].weight, before[0])
    optimizer.restore()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))

    other.load_state_dict(net.state_dict())
    resumed = Extragradient(other.parameters(), SGD, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(closure)
    resumed.step(closure_of(resumed, lambda: loss_of(other, x, y)))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


class Rateless(SGD):
    """An optimizer without a learning rate."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, lr=0.1)
        del self.defaults["lr"]
        for group in self.param_groups:
            del group["lr"]


def test_a_base_without_learning_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="the look-ahead needs a learning rate; Rateless has none"):
        Extragradient([nn.Parameter(torch.ones(2))], Rateless)
