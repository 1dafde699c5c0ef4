"""Networks whose blocks run again and again in a pass, with one set of weights: a block comes one way in all calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import ResidualMLP

ORDERS = {"one": "aaaaaa", "in turn": "ababab", "behind others": "cdaaaabb", "with one in between": "acabdb"}


class Recurrent(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        for name in sorted(set(order)):
            self.add_module(name, ResidualMLP(32, 128))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        output: Tensor = self.head(x)
        return output


def peak(net: nn.Module, x: Tensor) -> int:
    def step() -> None:
        output = net(x)
        output.sum().backward()

    step()
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(step).peak_bytes


@pytest.mark.parametrize("gamma", [0, 1 / 8])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_they_are_planned(order: str, gamma: float) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(order), torch.randn(64, 32)
    stored = mn.convert(model, x, gamma=gamma, backward="stored")
    expected = train_step(stored, (x,))
    least = mn.plan(model, x, budget="least", gamma=gamma)
    assert least.peak < 0.8 * least.stored_peak
    for budget in (least.measured_peak, (least.peak + least.stored_peak) // 2, least.stored_peak + 1000):
        plan = mn.plan(model, x, budget=budget, gamma=gamma)
        net = mn.convert(model, plan=plan)
        assert plan.peak == pytest.approx(peak(net, x), rel=0.1)
        assert plan.measured_peak <= plan.budget
        net.zero_grad(set_to_none=True)
        assert_same(train_step(net, (x,)), expected, tolerance=0.0)


def test_two_ways_for_one_module_are_refused() -> None:
    plan = mn.plan(Recurrent("aaaa"), torch.randn(64, 32), budget="least", gamma=0)
    ways = [replace(unit, way="stored" if at else "checkpointed") for at, unit in enumerate(plan.units)]
    with pytest.raises(mn.ConversionError, match="module 'a' is checkpointed in one call, and stored in another one"):
        mn.convert(Recurrent("aaaa"), plan=replace(plan, units=tuple(ways)))
