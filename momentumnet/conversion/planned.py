"""Conversion as a plan says, and again where the plan no longer fits what comes in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from momentumnet.conversion.planning import step_plan
from momentumnet.conversion.reversion import revert
from momentumnet.core.passes.settings import FINAL_VELOCITIES
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.description import model_config
from momentumnet.errors import ConversionError
from momentumnet.options import one_of
from momentumnet.planner.machine.budget import LEAST
from momentumnet.planner.plans.batch_watch import Again, BatchWatch, logger
from momentumnet.recompute import own_checkpoints
from momentumnet.streams.blocks.converted import Role, converted_blocks, note_converted
from momentumnet.streams.blocks.roles import apply
from momentumnet.streams.tracing.trace import Arguments

if TYPE_CHECKING:
    from momentumnet.planner.plans.training_plan import TrainingPlan


@dataclass(frozen=True)
class Ends:
    """How streams begin and end, which no plan says; see `momentumnet.convert`.

    Raises:
        ValueError: streams cannot begin so.
    """

    final_velocity: str
    initial_velocity: str | nn.Module | None

    def __post_init__(self) -> None:
        one_of("final_velocity", self.final_velocity, FINAL_VELOCITIES)
        if self.initial_velocity not in (None, "branch") and not isinstance(self.initial_velocity, nn.Module):
            raise ValueError(f"initial_velocity must be None, 'branch' or an nn.Module, got {self.initial_velocity!r}")

    def begin(self, runners: Sequence[MomentumStream]) -> None:
        """Say how the streams begin."""
        for runner in runners if self.initial_velocity is not None else ():
            if isinstance(self.initial_velocity, nn.Module):
                runner.velocity_module = self.initial_velocity
            else:
                runner.branch_first = True


def follow(model: nn.Module, plan: TrainingPlan, ends: Ends, again: Again | None = None) -> BatchWatch:
    """Convert the model, itself, as a plan says, and watch that the inputs are no larger than planned.

    Returns:
        What watches.

    Raises:
        ConversionError: the plan is one for another model, or has no stream that could begin with a velocity.
    """
    from momentumnet.planner.plans.following import from_plan  # only who plans waits for these
    from momentumnet.planner.plans.made_for import differences

    runners, roles = from_plan(model, plan, ends.final_velocity)
    watch = BatchWatch(plan.elements, plan.budget, again, plan.autocast, plan.training)
    if found := differences(model, plan):
        watch.tell_of_another(model, found)
    if ends.initial_velocity is not None and not runners:
        raise ConversionError(
            "initial_velocity was given, and by its plan the network computes what it always did (gamma 0, or without "
            "a residual stream), with no velocity; give gamma=, too, e.g. gamma=1/8, or leave initial_velocity out"
        )
    ends.begin(runners)
    take_roles(model, runners, roles, plan.by_forward)
    watch.attach(model)
    return watch


def take_roles(
    model: nn.Module, runners: Sequence[MomentumStream], roles: Sequence[Role], by_forward: Collection[str]
) -> None:
    """Let the modules of the model, itself, have these roles, so that it is converted.

    Warns of a module that checkpoints blocks which its stream recomputes.
    """
    apply(model, runners, roles, by_forward)
    note_converted(model)
    recomputing = [runner for runner in runners if runner.backward != "stored" and runner.gamma != 0]
    recomputed = [(runner.name, runner.blocks[: len(runner.blocks) - runner.kept]) for runner in recomputing]
    own_checkpoints.warn_of_parents(model, recomputed)


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
    """Convert the model anew; where nothing fits, by the least that there is, and where nothing can be planned not."""
    streams = _streams_of(model)
    # What was said of each stays, after the plan, too: set_gamma, without which it would be another function that is
    # trained, and set_range_check.
    said, learned = [(stream.gamma, stream.range_check) for stream in streams], [stream.learned() for stream in streams]
    gamma = streams[0].gamma if streams else before.gamma
    # A plan at 0 has no streams, which a schedule would go on to change.
    options = {**options, "gamma": gamma or before.gamma}
    example = Arguments(args, kwargs)
    revert(model, inplace=True)
    plan = before
    try:
        found = _best(model, example, budget, options)
        _check_same_streams(before, found)
        plan = found
    finally:
        follow(model, plan, ends, replanning(budget, options, plan, ends))
        for stream, (own_gamma, range_check) in zip(_streams_of(model), said, strict=True):
            stream.set_gamma(own_gamma)
            stream.set_range_check(range_check)
        if plan is before:
            for stream, known in zip(_streams_of(model), learned, strict=True):
                stream.load_learned(known)
        model_config.note(model)


def _check_same_streams(before: TrainingPlan, found: TrainingPlan) -> None:
    """A training goes on with the function that it has.

    Raises:
        ConversionError: other blocks would move by the rule.
    """
    was, now = ([(stream.path, stream.blocks) for stream in plan.streams] for plan in (before, found))
    if was != now:
        listed = (", ".join(path or "(root)" for path, _ in streams) or "none" for streams in (was, now))
        raise ConversionError(
            "planned again for larger inputs, the network has other streams than it was converted with ({} before, {} "
            "now), and would compute another function, so it stays as it was. Plan for the largest inputs to come "
            "(momentumnet.plan), or leave replan out".format(*listed)
        )


def _best(model: nn.Module, example: Any, budget: int | str | None, options: dict[str, Any]) -> TrainingPlan:
    """The plan within a budget; where nothing fits the one of the fewest bytes, as a training is on its way."""
    from momentumnet.planner.advice import DoesNotFitError  # only who plans waits for it

    try:
        return step_plan(model, example, budget, **options)
    except DoesNotFitError as error:
        logger.warning("%s. The training goes on with the least", error)
        return step_plan(model, example, LEAST, **options)


def _streams_of(model: nn.Module) -> list[MomentumStream]:
    """The streams that conversion has made: others, such as those of a `MomentumNet` in the model, are none of it."""
    runners = {id(role.runner): role.runner for _, role in converted_blocks(model)}
    return [runner for runner in runners.values() if isinstance(runner, MomentumStream)]
