"""Models that checkpoint themselves: derivatives at other weights than their own are refused, or right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.loss.derivatives import Gradient, ParametricLoss
from tests.models import WIDTH, ResidualMLP

DIGITS = torch.Generator().manual_seed(1)
BATCH = (torch.randn(8, WIDTH, generator=DIGITS), torch.randn(8, WIDTH, generator=DIGITS))


class Checkpointed(nn.Module):
    """Residual blocks; each is checkpointed, if it is said so."""

    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(ResidualMLP() for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def sharpness(net: nn.Module) -> object:
    return mn.landscape.sharpness(net, F.mse_loss, BATCH, rho=0.1)


def eigenvalues(net: nn.Module) -> object:
    return mn.landscape.hessian_top_eigenvalues(net, F.mse_loss, BATCH)


def gradinit(net: nn.Module) -> object:
    return mn.init.gradinit_(net, F.mse_loss, [BATCH, BATCH], lr=0.1, steps=2)


def metainit(net: nn.Module) -> object:
    return mn.init.metainit_(net, F.mse_loss, [BATCH, BATCH], steps=2)


@pytest.mark.parametrize("run", [sharpness, eigenvalues, gradinit, metainit])
def test_a_model_that_checkpoints_itself_is_refused(run: Callable[[nn.Module], object]) -> None:
    net = Checkpointed(reentrant=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"torch\.utils\.checkpoint: turn that off"):
        run(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    run(Checkpointed(reentrant=None))


def test_derivatives_at_other_weights_against_those_of_a_model_that_has_them() -> None:
    net = Checkpointed(reentrant=None)
    loss = ParametricLoss(net, F.mse_loss)
    theta = [(1.5 * leaf.detach()).requires_grad_() for leaf in loss.leaves()]
    found = Gradient(loss, theta, BATCH).value
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    F.mse_loss(net(BATCH[0]), BATCH[1]).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in net.parameters()], rtol=0.0, atol=0.0)
