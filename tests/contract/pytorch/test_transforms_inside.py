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


class Forced(nn.Module):
    """Its branch is the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        force: Tensor = torch.func.grad(lambda rows: torch.tanh(self.layer(rows)).square().sum())(x)
        return force


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_gradient_by_torch_func_is_refused_with_what_to_do(way: dict[str, Any]) -> None:
    model, x = Network(Forced, Forced), torch.randn(6, WIDTH)
    net = mn.convert(model, x, **way)
    with pytest.raises(mn.ConversionError, match=r"takes a gradient by torch\.func .*backward='stored'"):
        net(x)
    with pytest.raises(mn.ConversionError, match=r"takes a gradient by torch\.func .*without a budget"):
        mn.convert(model, x, budget="least")


def test_with_stored_activations_it_is_that_of_the_network() -> None:
    refused = torch.autograd.graph.disable_saved_tensors_hooks
    model, x = Network(Forced, Forced), torch.randn(6, WIDTH)
    net = mn.convert(model, x, gamma=0, backward="stored")
    assert torch.autograd.graph.disable_saved_tensors_hooks is refused
    for found in (net, model):
        found(x).square().mean().backward()
    for own, other in zip(net.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
