"""Blocks that leave a tensor of their graph on an attribute, as mixtures of experts leave an auxiliary loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.memory import measure_memory

WIDTH = 32


class Expert(nn.Module):
    aux: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.enter(x))
        self.aux = hidden.square().mean()
        return self.leave(hidden)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expert = Expert()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expert(x)


class Experts(nn.Module):
    """Blocks, and modules that are none, each of which leaves a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(12))
        self.others = nn.ModuleList(Expert() for _ in range(4))

    def losses(self) -> list[Tensor]:
        return [*(block.expert.aux for block in self.blocks), *(other.aux for other in self.others)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for part in (*self.blocks, *self.others):
            x = part(x)
        return x, torch.stack(self.losses()).sum()


def loss_of(output: tuple[Tensor, Tensor]) -> Tensor:
    return output[0].square().mean() + output[1]


OPTIONS = [
    {"backward": "reversible"},
    {"backward": "checkpointed"},
    {"backward": "reversible", "others": "checkpoint"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recompute_leaves_no_graph_behind(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(512, WIDTH)
    found, stored = (mn.convert(model, x, gamma=0.9, **way) for way in (options, {"backward": "stored"}))
    peaks, gradients = [], []
    for net in (found, stored):

        def step(net: nn.Module = net) -> None:
            loss_of(net(x)).backward()

        step()
        net.zero_grad(set_to_none=True)
        peaks.append(measure_memory(step).peak_bytes)
        gradients.append([p.grad for p in net.parameters()])
    assert peaks[0] < 0.65 * peaks[1]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_the_attribute_is_the_tensor_of_the_forward() -> None:
    model, x = Experts(), torch.randn(8, WIDTH)
    found = mn.convert(model, x, others="checkpoint")
    for _ in range(2):
        output = found(x)
        before = found.losses()
        loss_of(output).backward()
        assert all(map(lambda left, right: left is right, before, found.losses()))
