"""A container with layers between its blocks holds several streams, which have its path: each is followed by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import ResidualMLP


def model() -> nn.Module:
    torch.manual_seed(0)
    first, second = ([ResidualMLP(width, 4 * width) for _ in range(5)] for width in (32, 64))
    return nn.Sequential(*first, nn.Linear(32, 64), *second, nn.Linear(64, 4))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_each_is_followed_by_itself(share: float) -> None:
    net, x = model(), torch.randn(256, 32)
    expected = train_step(mn.convert(net, x, gamma=1 / 8, backward="stored"), (x,))
    plan = mn.plan(net, x, budget="least", gamma=1 / 8)
    assert len({stream.path for stream in plan.streams}) < len(plan.streams) == 2
    if share:
        plan = mn.plan(net, x, budget=int(plan.peak + share * (plan.stored_peak - plan.peak)), gamma=1 / 8)
    assert plan.measured_peak == pytest.approx(plan.peak, rel=0.1)
    for stream in plan.streams:
        ways = [unit.way for unit in plan.units if unit.names[0] in stream.blocks]
        assert plan.ways_of(stream) == (ways[0] if ways[0] != "stored" else "reversible", ways.count("stored"))
    assert_same(train_step(mn.convert(net, plan=plan), (x,)), expected, tolerance=0.0)
