"""Blocks that call what TorchScript has compiled: fused functions, and modules that were scripted or traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.tanh(x).sin() * 2.0


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x)).sin()


def example() -> Tensor:
    return torch.linspace(-1, 1, 30).reshape(5, 6)


ENDS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "scripted function": lambda: scripted,
    "traced function": lambda: torch.jit.trace(lambda x: torch.tanh(x).sin() * 2.0, example()),
    "scripted module": lambda: torch.jit.script(Layer()),
    "traced module": lambda: torch.jit.trace(Layer(), example()),
}


class Block(nn.Module):
    def __init__(self, end: str, skip: bool) -> None:
        super().__init__()
        self.layer, self.end, self.skip = nn.Linear(6, 6), ENDS[end](), skip

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x)) + (x if self.skip else 0)


@pytest.mark.parametrize("options", [{"gamma": 1 / 8}, {"backward": "checkpointed"}, {"others": "checkpoint"}])
@pytest.mark.parametrize("end", ENDS)
def test_every_step_has_the_gradients_of_stored_activations(end: str, options: dict[str, Any]) -> None:
    """From the second step on a recompute is left in the middle of the compiled code."""
    nets = []
    for chosen in (options, {**options, "backward": "stored", "others": "keep"}):
        torch.manual_seed(0)
        blocks = (Block(end, skip) for skip in (False, True, True, True, False))
        net = nn.Sequential(nn.Linear(6, 6), *blocks)
        nets.append(mn.convert(net, example(), inplace=True, **chosen))
    for _ in range(4):
        assert_same(*(train_step(net, (example(),)) for net in nets), tolerance=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_recomputed_module_may_hold_a_script_with_a_norm() -> None:
    x, gradients = torch.randn(16, WIDTH), []
    for options in ({"backward": "checkpointed", "others": "checkpoint"}, {}):
        torch.manual_seed(0)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()))
        model = nn.Sequential(ResidualMLP(), ResidualMLP(), nn.Sequential(scripted, nn.Linear(WIDTH, 3)))
        net = mn.convert(model, x, gamma=0, inplace=True, **options)  # in copies that PyTorch makes of scripts ...
        for _ in range(4):  # the first calls of a script are profiled
            net.zero_grad()
            net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])  # ... parameters are no leaves
    torch.testing.assert_close(*gradients)
