"""From a plan to who runs what in a converted model."""

from __future__ import annotations

from torch import nn

from momentumnet.core.passes.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.planner.plans.made_for import faults_of
from momentumnet.planner.plans.soundness import check
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.streams.blocks.block import scale_of
from momentumnet.streams.blocks.converted import Role
from momentumnet.streams.blocks.roles import offloaded, recomputed


def from_plan(model: nn.Module, plan: TrainingPlan, final_velocity: str) -> tuple[list[MomentumStream], list[Role]]:
    """The streams and the other roles of a plan, for a model that is not converted.

    Raises:
        ConversionError: the model has not the modules that the plan names, more of them, or blocks of another class; or
            it is no such plan.
    """
    if not isinstance(plan, TrainingPlan):
        raise ConversionError(
            f"plan= takes a momentumnet.TrainingPlan, which momentumnet.plan(..., budget=...) makes, got a "
            f"{type(plan).__name__}"
        )
    try:
        check(plan)
    except ValueError as error:
        raise ConversionError(f"the plan cannot be followed: {error}; plan again") from error
    faults = faults_of(model, plan)
    if faults:
        raise ConversionError(f"the plan was made for another model: {'; '.join(faults)}; plan again")
    runners = []
    for stream in plan.streams:
        backward, kept = plan.ways_of(stream)
        runners.append(
            MomentumStream(
                stream.path or "(root)",
                stream.blocks,
                plan.gamma,
                **scale_of(stream.magnitude, stream.start_magnitude, stream.spread),
                arithmetic=plan.arithmetic,
                backward=backward,
                kept=kept,
                arguments=stream.arguments,
                companions=stream.companions,
                final_velocity=final_velocity,
            )
        )
    # A module that runs several times has one role.
    again = recomputed(dict.fromkeys(tuple(name for unit in units for name in unit.names) for units in plan.recomputed))
    return runners, [*again, *offloaded(plan.in_host_memory)]
