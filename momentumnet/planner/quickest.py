"""Planning a step whose gamma is not said: of the plans at several values the one that takes the least time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from momentumnet.errors import ConversionError
from momentumnet.planner.fit import MeasuredStep
from momentumnet.planner.methods import PlannedMethod
from momentumnet.planner.training_plan import TrainingPlan
from momentumnet.planner.trial import Trial

# A function that is not the network's own has to be quicker by so much: times are measured no better.
WORTH = 0.02
# Least budgets that are so close together, as a share, count as the same: predictions are no better.
CLOSE = 1 / 256


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
        near = [step for step in steps if step.least[0] <= room * (1 + CLOSE)]
        above = {step.gamma: max(0, room - step.least[0]) if spare else 0 for step in near}
        return _quickest(near, room, lambda step: step.plan(None, spare=above[step.gamma], trial=trial))
    return _quickest(steps, limit, lambda step: step.plan(limit, trial=trial))


def _quickest(
    steps: Sequence[MeasuredStep], room: int, planned: Callable[[MeasuredStep], TrainingPlan]
) -> TrainingPlan:
    best: TrainingPlan | None = None
    errors: list[tuple[int, ConversionError]] = []
    for step in steps:
        enough = 0.0 if best is None else best.seconds * (1 - WORTH)
        if best is not None and (step.own_seconds >= enough or step.seconds_within(room) >= enough):
            continue
        try:
            found = planned(step)
        except ConversionError as error:
            errors.append((step.least[0], error))
        else:
            best = found if best is None or found.seconds < best.seconds * (1 - WORTH) else best
    if best is None:
        raise min(errors, key=lambda entry: entry[0])[1]
    return replace(best, methods=_of_all(steps, best))


def _of_all(steps: Sequence[MeasuredStep], plan: TrainingPlan) -> tuple[PlannedMethod, ...]:
    """The plan's methods, and those that only another value of gamma has."""
    found = {method.name: method for step in reversed(steps) for method in step.methods}
    return tuple((found | {method.name: method for method in plan.methods}).values())
