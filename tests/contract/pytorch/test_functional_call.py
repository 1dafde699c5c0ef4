"""torch.func.functional_call of a converted network: recomputed with what it was given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.contract.parents import BACKWARDS, Looped, converted, straight
from tests.models import WIDTH, ResidualMLP


def test_functional_call_is_recomputed_with_the_parameters_it_was_given() -> None:
    """MAML and GradInit: a loss after a differentiable step, and its gradient at the parameters before."""
    torch.manual_seed(0)
    model, x = Looped(straight), torch.randn(5, WIDTH)
    gradients = []
    for backward in BACKWARDS:
        net = converted(model, backward)
        names, parameters = zip(*net.named_parameters(), strict=True)
        first = torch.autograd.grad(net(x).square().mean(), parameters, create_graph=True)
        stepped = {name: p - 0.1 * g for name, p, g in zip(names, parameters, first, strict=True)}
        loss = functional_call(net, stepped, (x,)).square().mean()
        gradients.append(torch.autograd.grad(loss, parameters))
        assert all(isinstance(p, nn.Parameter) for p in net.parameters())
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


class WithBuffers(ResidualMLP):
    """Reads two buffers, one of them integers; its norm reads its statistics in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.ones((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.norm(self.inner(x)).roll(int(self.shift), dims=-1)


@pytest.mark.parametrize("training", [True, False])
def test_functional_call_is_recomputed_with_the_buffers_it_was_given(training: bool) -> None:
    torch.manual_seed(0)
    model, x = Looped(straight, WithBuffers).train(training), torch.randn(5, WIDTH)
    gradients = []
    for backward in BACKWARDS:
        net = converted(model, backward)
        own = {name: buffer.clone() for name, buffer in net.named_buffers()}
        given = {name: buffer * 2 for name, buffer in own.items()}
        loss = functional_call(net, given, (x,)).square().mean()
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        for name, buffer in net.named_buffers():
            assert torch.equal(buffer, own[name]), name
            assert buffer is not given[name]
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
