"""Other parameters in the places of those that a forward has read, before its backward has run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.models import WIDTH, Chain, ResidualMLP


def rows() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Chain([ResidualMLP() for _ in range(4)])


@pytest.mark.parametrize("backward", ["reversible", "checkpointed"])
def test_a_state_that_is_assigned_with_other_values_is_named(backward: str) -> None:
    net = mn.convert(model(), rows(), backward=backward)
    loss_of(net(rows())).backward()
    y = net(rows())
    state = {name: value + 0.1 for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    with pytest.raises(mn.ReconstructionError, match=r"'inner.*' (has been|was) replaced .*assign=True"):
        loss_of(y).backward()


def test_a_state_that_is_assigned_with_the_same_values_gives_the_old_parameters_their_gradients() -> None:
    net = mn.convert(model(), rows(), backward="reversible")
    loss_of(net(rows())).backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad()
    y, old = net(rows()), list(net.parameters())
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)
    loss_of(y).backward()
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(old, expected, strict=True))
