"""From a plan to who runs what in a converted model."""

from __future__ import annotations

from torch import nn

from momentumnet.core.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.planner.soundness import check
from momentumnet.planner.training_plan import TrainingPlan
from momentumnet.streams.block import scale_of
from momentumnet.streams.containers import differences
from momentumnet.streams.converted import Role
from momentumnet.streams.roles import offloaded, recomputed


def from_plan(model: nn.Module, plan: TrainingPlan, final_velocity: str) -> tuple[list[MomentumStream], list[Role]]:
    """The streams and the other roles of a plan, for a model that is not converted.

    Raises:
        ConversionError: the model has not the modules that the plan names, or more of them; or it is no such plan.
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
    there = {name for name, _ in model.named_modules()}
    named = [name for unit in plan.units for name in unit.names] + [name for s in plan.streams for name in s.blocks]
    named += [*plan.by_forward, *(path for path, _ in plan.containers)]
    missing = [name for name in dict.fromkeys(named) if name not in there]
    faults = [f"{type(model).__name__} has no module {quoted(missing)}"] if missing else []
    faults = faults or differences(model, dict(plan.containers))
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
