"""Blocks that call their own layers by a transform of torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.branches import WIDTH, Network

WAYS = [{"backward": "reversible"}, {"backward": "checkpointed"}, {"backward": "reversible", "others": "checkpoint"}]


class ByRow(nn.Module):
    """Its layer is called for each row by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: torch.tanh(self.layer(row)))(x)


class Ensemble(nn.Module):
    """Several layers of one shape, as one over their stacked parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *_ = self.layers
        values = [dict(layer.named_parameters()) for layer in self.layers]
        stacked = {name: torch.stack([own[name] for own in values]) for name in values[0]}
        outputs = torch.vmap(lambda own: torch.func.functional_call(first, own, (x,)))(stacked)
        return torch.tanh(outputs).mean(0)


class Sensitive(nn.Module):
    """Takes the derivative of its layer in one direction, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        output, tangent = torch.func.jvp(lambda rows: torch.tanh(self.layer(rows)), (x,), (torch.ones_like(x),))
        return output + tangent


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("branch", [ByRow, Ensemble, Sensitive])
def test_gradients_are_those_of_stored_activations(branch: type[nn.Module], way: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Network(branch, branch), torch.randn(6, WIDTH)
    found, stored = (mn.convert(model, x, **options) for options in (way, {"backward": "stored"}))
    for _ in range(3):
        for net in (found, stored):
            net.zero_grad()
            net(x).square().mean().backward()
        for own, other in zip(found.parameters(), stored.parameters(), strict=True):
            assert own.grad is not None
            assert torch.equal(own.grad, other.grad)
