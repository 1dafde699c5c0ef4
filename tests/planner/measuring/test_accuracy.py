"""What a plan predicts of networks whose gradients do not flow from unit to unit alone, beside what is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.measuring.measure import measured
from momentumnet.planner.profiles.choice import Choice, Way
from momentumnet.planner.profiles.flow import flow_of
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Cost, Handover, Unit
from momentumnet.planner.searching.simulate import simulated
from tests.planner.measuring.steps import NETWORKS, Step, squared

GAMMA = 1 / 8
UNDER_AUTOCAST = ("llama", "large weights", "long stream")
CELLS = [*((name, False) for name in NETWORKS), *((name, True) for name in UNDER_AUTOCAST)]


@pytest.mark.parametrize(("name", "autocast"), CELLS)
def test_peak_and_held_are_predicted_and_gradients_are_those_of_stored(name: str, autocast: bool) -> None:
    step = Step(name, autocast=autocast)
    with step.under_autocast():
        least = mn.plan(step.model, step.example, gamma=GAMMA, budget="least", loss=step.loss)
        between = int((least.peak + least.stored_peak) / 2 * 1.06)
        plans = [least, mn.plan(step.model, step.example, gamma=GAMMA, budget=between, loss=step.loss)]
        stored = step.model
        if least.streams:
            stored = mn.convert(step.model, step.example, gamma=GAMMA, backward="stored")
    expected = step.gradients(stored)
    for plan in plans:
        net = mn.convert(step.model, plan=plan)
        torch.testing.assert_close(step.gradients(net), expected, rtol=0.0, atol=0.0)
        net.zero_grad(set_to_none=True)
        report = mn.measure_memory(lambda net=net: step(net))
        assert plan.peak == pytest.approx(report.peak_bytes, rel=0.1)
        assert plan.held == pytest.approx(report.saved_bytes, rel=0.05)
        if plan.budget is not None:
            assert plan.measured_peak == pytest.approx(report.peak_bytes, rel=0.01)
            assert report.peak_bytes <= plan.budget


def test_a_gradient_waits_while_a_skip_goes_around() -> None:
    """By hand: y = a(x); z = c(b(y)) + y, each layer a unit. The gradient of y waits while b and c run."""
    first, second, third = (nn.Linear(4, 4, bias=False) for _ in range(3))
    ranges = []

    def unit(layer: nn.Module, x: Tensor) -> Tensor:
        start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        output = layer(x)
        ranges.append((start, torch.autograd._get_sequence_nr()))  # type: ignore[attr-defined]
        return output

    y = unit(first, torch.randn(2, 4))
    z = unit(third, unit(second, y)) + y
    flow = flow_of([z], ranges)
    gradient = 2 * 4 * 4
    assert [flow.around(place) for place in range(3)] == [0, gradient, gradient]
    assert flow.in_front(3) == 3 * gradient  # an addition takes one and hands out two
    assert [flow.of_parameters(place) for place in range(4)] == [0, 0, 0, 0]
    assert [flow.of_unit(place) for place in range(3)] == [4 * 4 * 4] * 3
    outside = flow_of([z], ranges[:2])
    assert [outside.of_parameters(place) for place in range(3)] == [0, 0, 4 * 4 * 4]


def test_modules_that_take_more_than_one_tensor_are_recomputed_alone() -> None:
    """Llama hands its embeddings to the rotation as well, beside the positions: no chain leads into that."""
    step = Step("llama", autocast=False)
    plan = mn.plan(step.model, step.example, budget="least", loss=step.loss)
    assert all(len(unit.names) == 1 or "rotary" not in unit.names[-1] for unit in plan.units)


class Behind(nn.Module):
    """Computes behind its only unit: a sum, of which two tensors as large as the unit's output are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return ((self.layer(x) + 1) * 2).sum()


def test_what_the_forward_takes_behind_the_last_unit() -> None:
    x = torch.randn(64, 8)
    _, ending = measured(Behind(), x, [("layer",)], None, torch.device("cpu"))
    assert ending.work == pytest.approx(2 * x.nbytes, abs=16)  # the sum itself is left; scalars take a few bytes


def test_casts_of_weights_wait_for_the_loss() -> None:
    """By hand: two units of which one keeps its activations, the casts of its weights among them."""
    units = tuple(
        Unit((str(n),), None, frozenset({n}), frozenset({10 + n}), Handover.PART, Cost(cast_bytes=100))
        for n in range(2)
    )
    profile = Profile(units, (), {0: 1000, 1: 1000, 10: 7, 11: 7}, (), Cost(forward_peak=30), behind=50)
    choices = [Choice(0, 1, Way.CHECKPOINTED), Choice(1, 2, Way.STORED)]
    [loss] = [moment for moment in simulated(profile, choices) if moment.phase == "loss"]
    assert loss.bytes == 7 + 1000 + 100 + 50


class DepthwiseBlock(nn.Module):
    """ConvNeXt's: its convolution is given one image whose channels lie next to each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_parts_are_measured_on_tensors_that_lie_as_in_the_step() -> None:
    """By the stride of a dimension of size 1 a depthwise convolution takes 17 times the bytes in its backward."""
    model = nn.Sequential(nn.Conv2d(8, 160, 1), *(DepthwiseBlock(160) for _ in range(4)))
    x = torch.empty_strided((1, 8, 7, 7), (8 * 49, 1, 8 * 7, 8)).normal_()
    least = mn.plan(model, x, budget="least", loss=squared)
    for plan in (least, mn.plan(model, x, budget=2 * least.peak, loss=squared)):
        net = mn.convert(model, plan=plan)
        squared(net(x)).backward()
        net.zero_grad(set_to_none=True)
        report = mn.measure_memory(lambda net=net: squared(net(x)).backward())
        assert plan.peak == pytest.approx(report.peak_bytes, rel=0.02)


class Turned(nn.Module):
    """Two layers of one make, of which the second one is given its input in another memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.clone())
        output: Tensor = self.second(x.contiguous(memory_format=torch.channels_last))
        return output


def test_parts_of_one_make_that_are_given_other_strides_are_measured_apart() -> None:
    model, seen = Turned(), []
    for layer in (model.first, model.second):
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
    x = torch.randn(2, 8, 6, 6)
    embedded = nn.Sequential(nn.Conv2d(8, 8, 1), model)
    measured(embedded, x, [("1.first",), ("1.second",)], None, torch.device("cpu"))
    assert len(set(seen)) == 2
    first, second = (seen.count(strides) for strides in dict.fromkeys(seen))
    assert first == second


def test_gradients_that_parts_are_handed_lie_as_what_they_returned() -> None:
    class Told(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.add(grad.stride())
            return grad

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Told.apply(x)
            return found

    seen: set[tuple[int, ...]] = set()
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), Last(), nn.Flatten())
    measured(model, x, [("0",), ("1",), ("2",)], None, torch.device("cpu"))
    assert seen == {model[0](x).stride()}


def test_the_backward_of_a_part_stands_behind_autocast() -> None:
    """Casts of weights are gone before their gradients in full precision come, if autocast has been left."""
    model = nn.Sequential(nn.Linear(2, 512), nn.Linear(512, 512, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        [_, cost], _ = measured(model, torch.randn(2, 2), [("0",), ("1",)], None, torch.device("cpu"))
    whole = model[1].weight.nbytes
    cast, narrow_gradient = whole // 2, whole // 2
    assert cost.backward_peak == pytest.approx(narrow_gradient + whole - cast, rel=0.05)
