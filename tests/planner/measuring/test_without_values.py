"""Plans that are made without values: on the meta device and on fake tensors, against what is measured with values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import momentumnet as mn
from momentumnet.planner.measuring.hollow import HollowMeasures
from tests.planner.measuring.steps import NETWORKS, Step


def measured_as_planned(step: Step, plan: mn.TrainingPlan) -> mn.MemoryReport:
    net = mn.convert(step.model, plan=plan)
    step(net)
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(lambda: step(net))


# On the meta device attention keeps all scores, so that Llama's is not there.
@pytest.mark.parametrize(
    ("name", "kind"), [("large classifier", "meta"), ("large classifier", "fake"), ("llama", "fake")]
)
def test_what_is_planned_without_values_is_what_is_measured_with_them(name: str, kind: str) -> None:
    step = Step(name, autocast=False)
    build, example, loss = NETWORKS[name]
    if kind == "meta":
        with torch.device("meta"):
            hollow = build().train()
        inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), example())
    else:
        with FakeTensorMode() as mode:
            hollow = build().train()
        inputs = pytree.tree_map_only(torch.Tensor, mode.from_tensor, example())
    least = mn.plan(hollow, inputs, budget="least", loss=loss)
    plans = [least, mn.plan(hollow, inputs, budget=2 * least.stored_peak, loss=loss)]
    for plan in plans:
        assert plan.estimated
        assert "Made without values" in str(plan)
        report = measured_as_planned(step, plan)
        assert plan.peak == pytest.approx(report.peak_bytes, rel=0.1)
        assert plan.held == pytest.approx(report.saved_bytes, rel=0.05)
    assert plans[1].seconds == plans[1].stored_seconds
    assert not mn.plan(step.model, step.example, budget="least", loss=loss).estimated


def test_storages_are_followed_as_the_allocator_follows_them() -> None:
    def layers() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Flatten(0))

    def step(net: nn.Module, x: torch.Tensor) -> object:
        output = net(x)
        gradient = torch.ones_like(output)
        return torch.autograd.grad(output, list(net.parameters()), gradient)

    net, x = layers(), torch.randn(128, 32)
    expected = mn.measure_memory(lambda: step(net, x))
    with FakeTensorMode():
        net, x = layers(), torch.randn(128, 32)
        found = HollowMeasures(net.parameters()).memory(lambda: step(net, x))
    assert found.peak_bytes == pytest.approx(expected.peak_bytes, rel=0.01)
    assert found.saved_bytes == pytest.approx(expected.saved_bytes, rel=0.01)
    assert found.backward_peak_bytes == pytest.approx(expected.backward_peak_bytes, rel=0.01)
