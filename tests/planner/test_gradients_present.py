"""Steps whose gradients are there before: they count all the time, and the choices that fit are others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.planner.fit import measured_step
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.rescaled import rescaled
from momentumnet.planner.searching.search import least
from tests.planner.micro_batches import loss, peak, weighty
from tests.planner.wide import chain, rows

LARGE, SMALL = 64, 16
GRADIENTS = ("anew", "present")


def encoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 8, enable_nested_tensor=False), torch.randn(8, 32, 64)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Without a stream."""
    torch.manual_seed(0)
    layers = [
        layer
        for before, after in ((3, 16), (16, 16), (16, 32))
        for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64)), torch.randn(16, 3, 16, 16)


@pytest.mark.parametrize("make", [encoder, weighty, convolutions])
@pytest.mark.parametrize("gamma", [0, 1 / 8])
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_what_is_predicted_is_what_a_step_takes(
    make: Callable[[], tuple[nn.Module, Tensor]], gamma: float, gradients: str
) -> None:
    model, x = make()
    micro_batches = 1 if gradients == "anew" else 3
    step = measured_step(model, x, gamma=exact_gamma(gamma), loss=loss, gradients=gradients)
    least = step.plan(None)
    middle = step.plan(int(least.peak / 0.94) + (least.stored_peak - least.peak) // 2)
    for plan in (least, middle, step.plan(1 << 40)):
        assert plan.gradients == gradients
        assert plan.peak == pytest.approx(peak(mn.convert(model, plan=plan), x, micro_batches), rel=0.1)


def test_a_budget_holds_over_several_batches_to_the_byte() -> None:
    model, x = weighty()
    least = mn.plan(model, x, budget="least", loss=loss, gradients="present")
    for budget in (int(1.05 * least.peak), (least.peak + least.stored_peak) // 2):
        plan = mn.plan(model, x, budget=budget, loss=loss, gradients="present")
        assert plan.measured_peak is not None
        assert plan.measured_peak == pytest.approx(peak(mn.convert(model, plan=plan), x, 3), rel=0.01)
        assert plan.measured_peak <= budget
    with pytest.raises(mn.ConversionError, match="gradients of parameters"):
        mn.plan(model, x, budget=least.peak // 2, loss=loss, gradients="present")


def test_a_plan_for_gradients_anew_takes_more_where_they_are_present() -> None:
    """So that it has to be said."""
    model, x = weighty()
    budget = int(1.05 * mn.plan(model, x, budget="least", loss=loss, gradients="present").peak)
    anew = mn.convert(model, x, budget=budget, gamma=1 / 8)
    present = mn.convert(model, x, budget=budget, gamma=1 / 8, gradients="present")
    assert peak(anew, x, 1) <= budget < peak(anew, x, 3)
    assert peak(present, x, 3) <= budget


def test_the_least_is_less_than_that_of_a_plan_for_gradients_anew() -> None:
    model, x = weighty()
    peaks = {}
    for gradients in GRADIENTS:
        plan = mn.plan(model, x, budget="least", loss=loss, gradients=gradients)
        peaks[gradients] = peak(mn.convert(model, plan=plan), x, 3)
    assert peaks["present"] < 0.99 * peaks["anew"]


def test_the_gradients_of_a_model_are_left_as_they_were() -> None:
    model, x = weighty()
    model(x).sum().backward()
    before = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in before]
    mn.plan(model, x, budget="least", gradients="present")
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(gradient, value) for gradient, value in zip(before, values, strict=True))


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_without_values_it_is_as_with_them(gradients: str) -> None:
    model, x = weighty()
    found = mn.plan(model, x, budget="least", gamma=1 / 8, gradients=gradients)
    hollow = mn.plan(model.to("meta"), x.to("meta"), budget="least", gamma=1 / 8, gradients=gradients)
    assert hollow.peak == pytest.approx(found.peak, rel=0.05)


def test_it_is_printed_and_saved(tmp_path: Path) -> None:
    model, x = weighty()
    plan = mn.plan(model, x, budget="least", gradients="present")
    assert "gradients of parameters are there all the time, and counted" in str(plan)
    assert "there all the time" not in str(mn.plan(model, x, budget="least"))
    plan.save(tmp_path / "plan.json")
    assert mn.TrainingPlan.load(tmp_path / "plan.json") == plan


def test_the_largest_batch_is_smaller() -> None:
    def make_example(batch: int) -> Tensor:
        return rows(batch)

    model = chain()
    budget = mn.plan(model, rows(16), budget="least").peak * 2
    sizes = {
        gradients: mn.largest_batch(model, make_example, budget, gradients=gradients, gamma=1 / 8)
        for gradients in GRADIENTS
    }
    assert sizes["present"] < sizes["anew"]
    net = mn.convert(model, rows(sizes["present"]), budget=budget, gamma=1 / 8, gradients="present")
    assert peak(net, rows(sizes["present"]), 2) <= budget


def test_planned_again_it_counts_alike() -> None:
    net = mn.convert(chain(), rows(SMALL), budget="1MiB", gradients="present", replan="auto")
    net(rows(LARGE)).square().mean().backward()
    net.zero_grad(set_to_none=True)
    assert peak(net, rows(LARGE), 3) <= 1 << 20


def test_what_it_may_be() -> None:
    model, x = weighty()
    with pytest.raises(ValueError, match="gradients must be one of 'anew', 'present', got 'kept'"):
        mn.plan(model, x, budget="least", gradients="kept")
    for call in (mn.plan, mn.convert):
        with pytest.raises(ValueError, match="gradients='present' says what a plan counts, and nothing is planned"):
            call(model, x, gradients="present")
    plan = mn.plan(model, x, budget="least")
    with pytest.raises(mn.ConversionError, match="gradients was given, too"):
        mn.convert(model, plan=plan, gradients="present")


def test_hooks_behind_accumulation_are_not_called_by_a_plan() -> None:
    model, x = encoder()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    called: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(called.append)
    mn.plan(model, x, budget="least", gradients="present")
    assert not called
    assert all(parameter.grad is not None and (parameter.grad == 1).all() for parameter in model.parameters())
    loss(model(x)).backward()
    assert len(called) == len(list(model.parameters()))


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("head", [False, True])
def test_gradients_that_are_added_do_not_grow_with_the_batch(gradients: str, head: bool) -> None:
    blocks, x = weighty()
    model = WithHead(blocks) if head else blocks

    def measured(batch: int) -> Options:
        example = x[:1].repeat(batch, 1)
        return measured_step(model, example, gamma=exact_gamma(1 / 8), loss=loss, gradients=gradients).options

    profile = measured(64).profile
    for batch in (1, 16, 256):
        predicted = least(Options(rescaled(profile, batch / 64)))[0]
        assert predicted == pytest.approx(least(measured(batch))[0], rel=0.02)


class WithHead(nn.Module):
    """Multiplies with a matrix of its own, outside of all parts."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.weight = body, nn.Parameter(torch.randn(256, 1024) / 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.weight


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_a_budget_of_the_least_and_bytes_to_spare_is_not_below_what_was_measured(gradients: str) -> None:
    model, x = weighty()
    plan = mn.plan(model, x, spare=1, loss=loss, gradients=gradients)
    assert plan.budget is not None
    assert plan.measured_peak is not None
    assert plan.measured_peak <= plan.budget
