"""Memory per element and further block, counted in allocator bytes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import momentumnet as mn
from tests.models import Chain, ResidualMLP, Scaled

ELEMENTS = 262144


def peak(depth: int, gamma: float) -> int:
    torch.manual_seed(0)
    block = Scaled()
    net = mn.convert(
        nn.Sequential(*[block] * depth), streams=[""], gamma=gamma, final_velocity="drop", backward="reversible"
    )
    x = torch.randn(ELEMENTS, requires_grad=True)
    return mn.measure_memory(lambda: net(x).sum().backward()).peak_bytes


@pytest.mark.parametrize("gamma", [0.9, 0.5, 1 / 8, 1 / 16])
def test_peak_bytes_per_element_and_further_block(gamma: float) -> None:
    per_block = (peak(400, gamma) - peak(40, gamma)) / 360 / ELEMENTS
    assert 0 < per_block <= 1.25 * math.log2(1 / gamma) / 8 + 0.004


def test_saved_bytes_are_the_state_and_the_lost_digits() -> None:
    torch.manual_seed(0)
    depth, batch, width, gamma = 40, 512, 16, 1 / 8
    chain = Chain([ResidualMLP() for _ in range(depth)])
    x = torch.randn(batch, width)
    stored = mn.measure_memory(lambda: chain(x).sum().backward()).saved_bytes
    net = mn.convert(chain, (x,), gamma=gamma)
    held = mn.measure_memory(lambda: net(x).sum().backward()).saved_bytes
    elements = batch * width
    # x, v and the store (12 bytes), the digits; outside of the stream the input of the head and the stem's output.
    assert held <= elements * (12 + depth * math.log2(1 / gamma) / 8 + 1 + 8) + 1024
    assert held < stored / 4
    plan = mn.plan(chain, (x,), gamma=gamma)
    assert abs(plan.saved_before - stored) <= 0.1 * stored
    assert abs(plan.saved_after - held) <= 0.35 * held
