"""Branches that go by what they keep of earlier calls, beside stored activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn

WIDTH = 6


class Keeping(nn.Module):
    """A branch whose output goes by what it has kept of earlier calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def kept(self, y: Tensor) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).tanh()
        return y * (1 + self.kept(y.detach()))


class Block(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.branch = kind()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


OPTIONS: tuple[dict[str, Any], ...] = ({}, {"backward": "checkpointed"}, {"others": "checkpoint"})


def network(kind: type[nn.Module]) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(kind(), nn.Sequential(*(Block(kind) for _ in range(3)))), torch.randn(4, WIDTH)


def assert_as_stored(
    kind: type[nn.Module], options: dict[str, Any], standing: Callable[[nn.Module], Any], *, twice: bool = True
) -> None:
    """Gradients, and what stands in the network behind its steps; ``twice``: of two forwards and two backwards each."""
    found = []
    for given in ({"backward": "stored"}, options):
        model, x = network(kind)
        net = mn.convert(model, x, gamma=1 / 8, inplace=True, **given)
        for _ in range(3):
            loss = net(x).square().sum()
            if twice:
                loss = loss + net(2 * x).square().sum()
                loss.backward(retain_graph=True)
            loss.backward()
        found.append(([parameter.grad for parameter in net.parameters()], standing(net)))
    (expected, stands), (ours, our_stands) = found
    assert all(map(torch.equal, ours, expected))
    assert our_stands == stands


class Standing(Keeping):
    """A branch whose output goes by what it has written to in earlier calls."""

    def standing(self) -> list[Any]:
        raise NotImplementedError


def standing_in(net: nn.Module) -> list[Any]:
    return [module.standing() for module in net.modules() if isinstance(module, Standing)]
