"""Modes that are switched between forward and backward: recomputes go by those of their forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import COUPLED


class Block(nn.Module):
    """With what works otherwise in training: batch statistics, dropout, and a layer that asks for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.layer, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, 0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.layer(self.norm(x)).tanh())
        y = self.attention(y[:, None], y[:, None], y[:, None])[0][:, 0]
        return x + (y if self.training else 2 * y)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.front(x))


def norms_to_eval(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


SWITCHES: dict[str, tuple[bool, Callable[[nn.Module], Any]]] = {
    "to eval": (True, lambda model: model.eval()),
    "to training": (False, lambda model: model.train()),
    "norms to eval": (True, norms_to_eval),
    "one block to eval": (True, lambda model: model.blocks[1].eval()),
}


def outcome(options: dict[str, Any], begins: bool, switch: Callable[[nn.Module], Any]) -> tuple[list[Any], nn.Module]:
    torch.manual_seed(0)
    model, x = Network(), torch.randn(5, 6, requires_grad=True)
    net = mn.convert(model, x, **options).train(begins)
    torch.manual_seed(1)
    loss = net(x).square().sum()
    switch(net)
    modes = [module.training for module in net.modules()]
    loss.backward()
    assert [module.training for module in net.modules()] == modes
    return [x.grad, *(parameter.grad for parameter in net.parameters()), *net.buffers()], net


@pytest.mark.parametrize("switched", SWITCHES)
@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 1 / 8},
        {"gamma": 1 / 8, "backward": "checkpointed"},
        {"gamma": 1 / 8, "others": "checkpoint"},
        *COUPLED,
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_gradients_and_statistics_are_those_of_stored_activations(switched: str, options: dict[str, Any]) -> None:
    found, _ = outcome(options, *SWITCHES[switched])
    stored = {**{key: value for key, value in options.items() if key != "others"}, "backward": "stored"}
    expected, _ = outcome(stored, *SWITCHES[switched])
    assert all(map(torch.equal, found, expected))
