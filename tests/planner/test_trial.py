"""Plans tried out: a budget is used to its last byte, and what was measured to fit does."""

from __future__ import annotations

import copy
import dataclasses
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.memory import format_bytes
from momentumnet.planner import step_plans, trial
from momentumnet.planner.fit import measured_step
from momentumnet.planner.measuring.step_loss import loss_of
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.planner.trial import trial_of
from tests.models import WIDTH, Chain, ResidualMLP
from tests.planner.wide import Wide, chain, measured, rows


def peak(net: nn.Module) -> int:
    x = rows()

    def step() -> None:
        loss_of(net(x)).backward()

    step()
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(step).peak_bytes


def off_by(factor: float, true: Callable[[TrainingPlan], int | None]) -> Callable[[TrainingPlan], int | None]:
    def scaled(plan: TrainingPlan) -> int | None:
        found = true(plan)
        return None if found is None else int(found * factor)

    return scaled


def test_the_peak_is_that_of_the_converted_network() -> None:
    model = chain()
    for budget in ("least", mn.plan(model, rows(), budget="least").peak * 3 // 2):
        plan = mn.plan(model, rows(), budget=budget)
        tried = trial_of(model, rows(), None)
        assert tried is not None
        assert tried(plan) == pytest.approx(peak(mn.convert(model, plan=plan)), rel=0.01)
        assert plan.measured_peak == tried(plan)


@pytest.mark.parametrize("gamma", [0, 1 / 8])
def test_the_peak_under_autocast_is_that_of_a_loop_that_leaves_it_behind_the_loss(gamma: float) -> None:
    """What is recomputed casts its weights again, which nobody keeps: where plans are made autocast goes on."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(ResidualMLP(128) for _ in range(8))), torch.randn(256, 128)

    def step(net: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = net(x)
            total = loss_of(output)
        total.backward()

    with torch.autocast("cpu", torch.bfloat16):
        plan = mn.plan(model, x, budget="least", gamma=gamma)
        tried = trial_of(model, x, None)
        assert tried is not None
        found = tried(plan)
        assert torch.is_autocast_enabled("cpu")
    assert {unit.way for unit in plan.units} != {"stored"}
    net = mn.convert(model, plan=plan)
    step(net)
    net.zero_grad(set_to_none=True)
    assert found == pytest.approx(mn.measure_memory(lambda: step(net)).peak_bytes, rel=0.01)


def test_the_model_is_left_as_it_was() -> None:
    class Noisy(Chain):
        def __init__(self) -> None:
            super().__init__([Wide() for _ in range(4)])
            self.norm, self.calls = nn.BatchNorm1d(WIDTH), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(self.norm(x) + torch.randn_like(x))

    model = Noisy().train()
    model(rows()).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients, calls = [parameter.grad.clone() for parameter in model.parameters()], model.calls
    random = torch.get_rng_state()
    assert mn.plan(model, rows(), budget="1MiB").measured_peak is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert model.calls == calls
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_a_budget_of_what_another_plan_took_gives_that_plan_again() -> None:
    """With a margin for the prediction it would not fit its own bytes."""
    model = chain()
    least = mn.plan(model, rows(), budget="least")
    tried = trial_of(model, rows(), None)
    assert tried is not None
    own = tried(least)
    again = mn.plan(model, rows(), budget=own)
    assert [unit.way for unit in again.units] == [unit.way for unit in least.units]
    assert again.measured_peak == own
    with pytest.raises(mn.ConversionError) as refused:
        mn.plan(model, rows(), budget=own - 1)
    budget, took = f"{format_bytes(own)} ({own - 1} bytes)", f"{format_bytes(own)} ({own} bytes)"
    assert f"no choice fits a budget of {budget}. The least is {took} as measured" in str(refused.value)


@pytest.mark.parametrize("factor", [0.93, 1, 1.07])
def test_what_stored_takes_is_enough_to_store_all(factor: float) -> None:
    """Whatever is predicted of it."""
    model = chain()
    step, tried = measured(model), trial_of(model, rows(), None)
    assert tried is not None
    stored = tried(step.plan(1 << 40))
    assert stored is not None
    limit = int(stored * factor)
    found = step.plan(limit, trial=off_by(factor, tried))
    assert {unit.way for unit in found.units} == {"stored"}
    assert found.measured_peak == limit


@pytest.mark.parametrize("factor", [0.92, 0.97, 1.03, 1.08])
def test_a_prediction_that_is_off_is_corrected(factor: float) -> None:
    model = chain()
    step, tried = measured(model), trial_of(model, rows(), None)
    assert tried is not None
    least, stored = step.plan(None).peak, step.plan(1 << 40).peak
    for limit in range(int(1.1 * least), int(1.1 * stored), (stored - least) // 5):
        found = step.plan(limit, trial=off_by(factor, tried))
        assert found.measured_peak is not None
        assert found.measured_peak <= limit
        # What a step that is predicted exactly takes in these bytes, a block more or less.
        best = step.plan(int(limit / factor), trial=tried)
        assert found.seconds <= best.seconds + 1.01 * max(unit.seconds for unit in step.plan(None).units)


def test_the_least_is_tried_before_a_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly what was measured brings the others down."""
    monkeypatch.setattr(step_plans, "TRIALS", 3)
    step = measured(chain())
    smallest = step.plan(None)
    limit = (smallest.peak + 2 * step.plan(1 << 40).peak) // 3

    def just_too_much(plan: TrainingPlan) -> int:
        return limit if plan.units == smallest.units else limit + 1

    assert step.plan(limit, trial=just_too_much).units == smallest.units
    with pytest.raises(
        mn.ConversionError, match=rf"The least is {re.escape(format_bytes(limit + 1))} \({limit + 1} bytes\)"
    ):
        step.plan(limit, trial=lambda plan: limit + 1)


def test_without_the_memory_for_a_trial_less_is_planned() -> None:
    model = chain()
    step, tried = measured(model), trial_of(model, rows(), None)
    most = step.plan(None).peak * 5 // 4
    found = step.plan(most * 21 // 20, trial=lambda plan: None if plan.peak > most else tried(plan))
    assert found.measured_peak is not None
    assert found.peak <= most


def test_where_nothing_can_be_tried_a_margin_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(nn.Parameter):
        pass

    odd = chain()
    odd.stem.weight = Other(odd.stem.weight.detach())
    assert trial_of(odd, rows(), None) is None
    assert trial_of(chain().to("meta"), rows().to("meta"), None) is None
    assert trial_of(chain(), rows(), None) is not None
    monkeypatch.setattr(trial, "processes", lambda: 2)
    assert trial_of(chain(), rows(), None) is None
    budget = mn.plan(chain(), rows(), budget="least").peak
    with pytest.raises(mn.ConversionError, match="no choice fits"):
        mn.plan(chain(), rows(), budget=budget)


def test_each_trial_has_a_copy_of_its_own() -> None:
    class Counting(Chain):
        copies = 0

        def __deepcopy__(self, memo: dict[int, Any]) -> Chain:
            Counting.copies += 1
            return copy.deepcopy(Chain(list(self.blocks)), memo)

    model = Counting([Wide() for _ in range(4)])
    plan = mn.plan(model, rows(), budget="least")
    Counting.copies = 0
    with torch.inference_mode():
        tried = trial_of(model, rows(), None)
    assert tried is not None
    assert Counting.copies == 1
    assert [tried(plan), tried(plan), Counting.copies] == [plan.measured_peak, plan.measured_peak, 2]


def test_it_is_printed_and_saved(tmp_path: Path) -> None:
    plan = mn.plan(chain(), rows(), budget="1MiB")
    assert f", measured {format_bytes(plan.measured_peak)}, for a budget" in str(plan)
    assert ", measured" not in str(dataclasses.replace(plan, measured_peak=None))
    plan.save(tmp_path / "plan.json")
    assert mn.TrainingPlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("failures", [1, 2])
def test_a_trial_that_lacks_memory_is_made_once_more_without_garbage(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full collections are put off while a step is planned."""
    model, tries = chain(), 0
    plan, true = mn.plan(model, rows(), budget="least"), trial.measure_memory
    waiting = weakref.ref(Cycle())

    def full(step: Callable[[], None]) -> mn.MemoryReport:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise torch.OutOfMemoryError("the device is full")
        assert waiting() is None
        return true(step)

    monkeypatch.setattr(trial, "measure_memory", full)
    tried = trial_of(model, rows(), None)
    assert tried is not None
    gc.disable()  # as if the cycle had grown old
    try:
        assert tried(plan) == (plan.measured_peak if failures == 1 else None)
    finally:
        gc.enable()
    assert tries == 2


class Cycle:
    """Waits for the garbage collector."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("gamma", [0, 1 / 8])
def test_the_first_step_of_a_training_takes_no_more_than_was_measured(gamma: float) -> None:
    """In it streams learn their scales and where recomputes can end, and more is held than in those behind it."""
    model, x = chain(), rows()
    plan = mn.plan(model, x, budget="least", gamma=gamma)
    net = mn.convert(model, plan=plan)

    def step() -> None:
        output = net(x)
        loss_of(output).backward()

    assert plan.measured_peak == mn.measure_memory(step).peak_bytes


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_what_is_kept_to_compare_recomputes_takes_no_second_trial(share: float) -> None:
    """Of many small units: a trial takes as long as they all, and what is left by it is next to nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(*(ResidualMLP(WIDTH) for _ in range(60)))
    step = measured_step(net, torch.randn(64, WIDTH), gamma=exact_gamma(0))
    least, stored = step.plan(None).peak, step.plan(1 << 40).peak
    limit, tried = int(least + share * (stored - least)), list[TrainingPlan]()

    def with_reports(plan: TrainingPlan) -> int:
        tried.append(plan)
        return plan.peak + 48 * sum(unit.way != "stored" for unit in plan.units)

    found = step.plan(limit, trial=with_reports)
    assert len(tried) == 1
    assert limit * 0.98 <= (found.measured_peak or 0) <= limit
