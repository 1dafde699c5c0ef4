"""The least budget is what was measured, the one that an error names can be had, and no single way takes less."""

from __future__ import annotations

import dataclasses
import re

import pytest

import momentumnet as mn
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.planner.trial import trial_of
from tests.planner.micro_batches import loss, peak, weighty
from tests.planner.wide import chain, measured, rows


@pytest.mark.parametrize("gradients", ["anew", "present"])
def test_the_least_is_tried_out(gradients: str) -> None:
    model, x = weighty()
    plan = mn.plan(model, x, budget="least", loss=loss, gradients=gradients)
    taken = peak(mn.convert(model, plan=plan), x, 1 if gradients == "anew" else 3)
    assert plan.measured_peak == pytest.approx(taken, rel=0.001)


@pytest.mark.parametrize("share", [0.4, 0.97])
def test_the_least_that_an_error_names_can_be_had(share: float) -> None:
    model = chain()
    least = mn.plan(model, rows(), budget="least").measured_peak
    assert least is not None
    with pytest.raises(mn.ConversionError) as refused:
        mn.plan(model, rows(), budget=int(share * least))
    found = re.search(r"The least is \S+ \wiB \((\d+) bytes\) as measured", str(refused.value))
    assert found is not None, refused.value
    named = int(found[1])
    assert named <= least
    assert mn.plan(model, rows(), budget=named).measured_peak <= named
    with pytest.raises(mn.ConversionError):
        mn.plan(model, rows(), budget=named - 1)


@pytest.mark.parametrize("off", [-0.012, 0.012])
def test_what_recomputes_each_block_is_among_those_tried(off: float) -> None:
    """Predicted to take a little more than the least, it may take less, where predictions are not exact."""
    step, ways = measured(chain()), []

    def trial(plan: TrainingPlan) -> int:
        ways.append({unit.way for unit in plan.units})
        return int(plan.peak * (0.8 if ways[-1] == {"checkpointed"} else 1 + off))

    found = step.plan(None, trial=trial)
    assert {"checkpointed"} in ways
    assert {unit.way for unit in found.units} == {"checkpointed"}


def test_what_is_predicted_to_take_less_than_the_least_was_measured_to_is_tried() -> None:
    """What a recompute takes beside its activations counts in a network so small that it takes as much."""
    step = measured(chain())

    def trial(plan: TrainingPlan) -> int:
        stored = all(unit.way == "stored" for unit in plan.units)
        return plan.peak if stored else 2 * plan.stored_peak

    found = step.plan(None, trial=trial)
    assert {unit.way for unit in found.units} == {"stored"}
    assert found.measured_peak == found.stored_peak


@pytest.mark.parametrize("off", [-0.008, 0.008])
def test_where_the_least_takes_what_was_predicted_no_other_is_tried(off: float) -> None:
    step, tried = measured(chain()), list[TrainingPlan]()

    def trial(plan: TrainingPlan) -> int:
        tried.append(plan)
        return int(plan.peak * (1 + off))

    found = step.plan(None, trial=trial)
    assert len(tried) == 1
    assert found.measured_peak == trial(found)


@pytest.mark.parametrize("exact", [True, False])
def test_where_the_allocator_rounds_the_others_are_tried_all_the_same(*, exact: bool) -> None:
    """What is predicted to take as much may take less by what CUDA's allocator has free."""
    step = dataclasses.replace(measured(chain()), exact_bytes=exact)

    def trial(plan: TrainingPlan) -> int:
        return int(plan.peak * (0.8 if {unit.way for unit in plan.units} == {"checkpointed"} else 1.004))

    found = step.plan(None, trial=trial)
    assert ({unit.way for unit in found.units} == {"checkpointed"}) is not exact


def test_without_the_memory_for_a_trial_it_is_the_predicted_least() -> None:
    step = measured(chain())
    assert step.plan(None, trial=lambda plan: None).units == step.plan(None).units


def test_spare_is_above_the_predicted_least_and_tried_out() -> None:
    model = chain()
    plan = mn.plan(model, rows(), spare=1 << 16, gamma=1 / 8)
    tried = trial_of(model, rows(), None)
    assert tried is not None
    assert plan.measured_peak == tried(plan)
    assert plan.measured_peak <= plan.budget
