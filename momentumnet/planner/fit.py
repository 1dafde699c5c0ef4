"""Planning a training step: measure it, choose for each unit, and say what that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.planner.budget import bytes_of
from momentumnet.planner.build import profile_of
from momentumnet.planner.choice import Choice, Way
from momentumnet.planner.profile import Profile
from momentumnet.planner.search import Options, least, within
from momentumnet.planner.simulate import held_between, peak_of, simulated
from momentumnet.planner.training_plan import PlannedStream, PlannedUnit, TrainingPlan
from momentumnet.streams.discover import Discovery

# Of a budget, this share is left free for what the prediction may be off.
MARGIN = 0.05


def fitted(
    model: nn.Module,
    example_inputs: Any,
    found: Discovery,
    budget: int | str,
    *,
    gamma: Fraction,
    arithmetic: str,
    loss: Callable[[Any], Tensor] | None,
) -> TrainingPlan:
    """The plan that takes the least time within a budget.

    Args:
        model: the network, unconverted; it is left as it was found.
        example_inputs: as `momentumnet.convert` takes them.
        found: what a trace has found in it.
        budget: bytes, a text such as "4GiB", or "least".
        gamma: of the streams.
        arithmetic: of the streams.
        loss: of the model's output.

    Raises:
        ConversionError: no choice fits the budget; says what the least is.
        ValueError: the budget is no number of bytes.
    """
    limit = bytes_of(budget)
    profile = profile_of(model, example_inputs, found, gamma=gamma, arithmetic=arithmetic, loss=loss)
    if not profile.units:
        raise ConversionError(
            f"{type(model).__name__} has no part that could be recomputed, so there is nothing to plan"
        )
    options = Options(profile)
    if limit is None:
        _, choices = least(options)
    else:
        choices = within(options, int(limit * (1 - MARGIN))) or []
        if not choices:
            raise _does_not_fit(options, limit)
    return _plan(profile, options, choices, found, limit, gamma, arithmetic)


def _does_not_fit(options: Options, limit: int) -> ConversionError:
    profile = options.profile
    smallest, choices = least(options)
    moment = peak_of(simulated(profile, choices))
    gradients = sum(unit.cost.parameter_bytes for unit in profile.units)
    in_loss = moment.unit == len(profile.units)
    where = "the loss" if in_loss else f"{moment.phase} of {profile.units[moment.unit].names[0]!r}"
    share = min(1.0, (limit * (1 - MARGIN) - gradients) / max(1, smallest - gradients))
    smaller = f"a batch of about {math.floor(100 * share)} % of this size"
    advice = smaller if share > 0 else "nothing: no batch is small enough"
    return ConversionError(
        f"no choice fits a budget of {format_bytes(limit)}. The least is about "
        f"{format_bytes(math.ceil(smallest / (1 - MARGIN)))}, for {where}; gradients of parameters take up to "
        f"{format_bytes(gradients)}. What would help: {advice}" + ("; or compute the loss in chunks" if in_loss else "")
    )


def _plan(
    profile: Profile,
    options: Options,
    choices: Sequence[Choice],
    found: Discovery,
    limit: int | None,
    gamma: Fraction,
    arithmetic: str,
) -> TrainingPlan:
    everything = [Choice(0, len(profile.units), Way.STORED)]
    moments, stored = simulated(profile, choices), simulated(profile, everything)
    seconds = profile.stored_seconds
    return TrainingPlan(
        units=tuple(_planned_units(profile, options, choices)),
        streams=tuple(
            PlannedStream(s.path, s.blocks, s.magnitude, s.start_magnitude, s.spread)
            for s in (found.streams if gamma else ())
        ),
        gamma=gamma,
        arithmetic=arithmetic,
        budget=limit,
        peak=peak_of(moments).bytes,
        stored_peak=peak_of(stored).bytes,
        seconds=seconds + sum(options.seconds(choice) for choice in choices),
        stored_seconds=seconds,
        held=held_between(profile, choices),
        moments=tuple(moments),
        stored_moments=tuple(stored),
        estimated=profile.estimated,
    )


def _planned_units(profile: Profile, options: Options, choices: Sequence[Choice]) -> list[PlannedUnit]:
    units = []
    held = options.held(choices)
    for group, choice in enumerate(choices):
        for index in range(choice.start, choice.stop):
            unit = profile.units[index]
            stream = None if unit.stream is None else profile.streams[unit.stream].path
            seconds = options.seconds(Choice(index, index + 1, choice.way))
            units.append(PlannedUnit(unit.names, stream, choice.way.value, group, held[index], seconds))
    return units
