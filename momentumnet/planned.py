"""Conversion as a plan says, and again where the plan no longer fits what comes in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from momentumnet import model_config
from momentumnet.core.stream import MomentumStream
from momentumnet.planner.batch_watch import Again, BatchWatch
from momentumnet.planning import step_plan
from momentumnet.reversion import revert
from momentumnet.streams.converted import note_converted, streams_of
from momentumnet.streams.roles import apply

if TYPE_CHECKING:
    from momentumnet.planner.training_plan import TrainingPlan


@dataclass(frozen=True)
class Ends:
    """How streams begin and end, which no plan says; see `momentumnet.convert`."""

    final_velocity: str
    initial_velocity: str | nn.Module | None

    def begin(self, runners: Sequence[MomentumStream]) -> None:
        """Say how the streams begin."""
        for runner in runners if self.initial_velocity is not None else ():
            if self.initial_velocity == "branch":
                runner.branch_first = True
            elif isinstance(self.initial_velocity, nn.Module):
                runner.velocity_module = self.initial_velocity
            else:
                raise ValueError(
                    f"initial_velocity must be None, 'branch' or an nn.Module, got {self.initial_velocity!r}"
                )


def follow(model: nn.Module, plan: TrainingPlan, ends: Ends, again: Again | None = None) -> None:
    """Convert the model, itself, as a plan says, and watch that the inputs are no larger than planned."""
    from momentumnet.planner.following import from_plan  # only who plans waits for it

    runners, roles = from_plan(model, plan, ends.final_velocity)
    ends.begin(runners)
    apply(model, runners, roles)
    note_converted(model)
    BatchWatch(plan.elements, plan.budget, again).attach(model)


def replanning(budget: int | str | None, options: Mapping[str, Any], plan: TrainingPlan, ends: Ends) -> Again:
    """What plans a model again for larger inputs, within the same budget.

    Args:
        budget: of the plan, as `momentumnet.plan` takes it.
        options: the other options of the plan.
        plan: that the model follows now.
        ends: of the streams.
    """
    return partial(_plan_again, budget, dict(options), plan, ends)


def _plan_again(
    budget: int | str | None,
    options: dict[str, Any],
    before: TrainingPlan,
    ends: Ends,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Convert the model anew; where nothing fits, it stays as it was."""
    streams = streams_of(model)
    # The function that is trained stays; set_gamma may have been there.
    options = {**options, "gamma": streams[0].gamma if streams else before.gamma}
    example = _as_example(model, args, kwargs)
    revert(model, inplace=True)
    plan = before
    try:
        plan = step_plan(model, example, budget, **options)
    finally:
        follow(model, plan, ends, replanning(budget, options, plan, ends))
        model_config.note(model)


def _as_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call as example inputs."""
    if not kwargs:
        return args
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments) if args else kwargs
