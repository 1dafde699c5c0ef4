"""Planning a step whose gamma is not said: of the plans at several values the one that takes the least time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from momentumnet.planner.advice import DoesNotFitError
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.planner.step_plans import CLOSE, NEAR, MeasuredStep
from momentumnet.planner.trial import Trial

# A function that is not the network's own has to be quicker by so much: times are measured no better.
WORTH = 0.02


def quickest_plan(
    steps: Sequence[MeasuredStep], limit: int | None, *, spare: int = 0, trial: Trial | None = None
) -> TrainingPlan:
    """The plan that takes the least time in so many bytes; see `MeasuredStep.plan`.

    Args:
        steps: one step at several values of gamma; those behind the first have to be worth it.
        limit: the bytes; None: the least there can be at any of them, and ``spare``.
        spare: see above.
        trial: see `MeasuredStep.plan`.

    Raises:
        ConversionError: no choice fits at any of them; says what the least is.
    """
    if limit is None:
        room = min(step.least[0] for step in steps) + spare
        if not spare:
            return _least(steps, room, trial)
        near = [step for step in steps if step.least[0] <= room * (1 + CLOSE)]
        above = {step.gamma: max(0, room - step.least[0]) for step in near}
        return _quickest(near, room, lambda step: step.plan(None, spare=above[step.gamma], trial=trial))
    return _quickest(steps, limit, lambda step: step.plan(limit, trial=trial))


def _least(steps: Sequence[MeasuredStep], room: int, trial: Trial | None) -> TrainingPlan:
    """The plan of the fewest bytes; of those that take nearly as few the quickest.

    Where plans are tried out it is what was measured that counts: those that are predicted to take a little more than
    the least may take less.
    """
    near = [step for step in steps if step.least[0] <= room * (1 + (CLOSE if trial is None else NEAR))]
    first, *others = near
    plans = [first.plan(None, trial=trial)]
    for step in others:
        # Predicted to take no less than was measured, and no less time: no reason to try it out.
        if step.least[0] < _taken(plans[0]) or not _is_slower(step, step.least[0], plans[0]):
            plans.append(step.plan(None, trial=trial))
    fewest = min(map(_taken, plans))
    return _with_all(steps, _quicker([plan for plan in plans if _taken(plan) <= fewest * (1 + CLOSE)]))


def _quicker(plans: Sequence[TrainingPlan]) -> TrainingPlan:
    """The quickest; those behind the first have to be worth it."""
    best, *others = plans
    for plan in others:
        best = plan if plan.seconds < best.seconds * (1 - WORTH) else best
    return best


def _taken(plan: TrainingPlan) -> int:
    """What the plan's step takes, as far as it is known."""
    return plan.peak if plan.measured_peak is None else plan.measured_peak


def _is_slower(step: MeasuredStep, room: int, best: TrainingPlan) -> bool:
    """Whether no plan of this step is quicker than one that there is, by so much that it is worth it."""
    enough = best.seconds * (1 - WORTH)
    return step.own_seconds >= enough or step.seconds_within(room) >= enough


def _quickest(
    steps: Sequence[MeasuredStep], room: int, planned: Callable[[MeasuredStep], TrainingPlan]
) -> TrainingPlan:
    best: TrainingPlan | None = None
    errors: list[DoesNotFitError] = []
    for step in steps:
        if best is not None and _is_slower(step, room, best):
            continue
        try:
            found = planned(step)
        except DoesNotFitError as error:
            errors.append(error)
        else:
            best = found if best is None else _quicker([best, found])
    if best is None:
        raise min(errors, key=lambda error: error.least)
    return _with_all(steps, best)


def _with_all(steps: Sequence[MeasuredStep], plan: TrainingPlan) -> TrainingPlan:
    """The plan with the methods of all steps: also those that only another value of gamma has."""
    found = {method.name: method for step in reversed(steps) for method in step.methods}
    return replace(plan, methods=tuple((found | {method.name: method for method in plan.methods}).values()))
