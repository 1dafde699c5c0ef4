"""Planning a training step: measure it, choose for each unit, and say what that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from momentumnet.errors import ConversionError
from momentumnet.planner.advice import does_not_fit
from momentumnet.planner.budget import allowed, bytes_of
from momentumnet.planner.build import device_of, profile_of
from momentumnet.planner.choice import Choice, Way
from momentumnet.planner.profile import Profile
from momentumnet.planner.search import Options, least, within
from momentumnet.planner.simulate import held_between, peak_of, simulated
from momentumnet.planner.training_plan import PlannedStream, PlannedUnit, TrainingPlan
from momentumnet.streams.discover import Discovery
from momentumnet.streams.nested import tensors_in


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
        budget: bytes, a text such as "4GiB", "least" or "device".
        gamma: of the streams.
        arithmetic: of the streams.
        loss: of the model's output.

    Raises:
        ConversionError: no choice fits the budget; says what the least is, what takes it and what would help.
        ValueError: the budget is no number of bytes.
    """
    limit = bytes_of(budget, device_of(model, example_inputs))
    options = options_of(model, example_inputs, found, gamma=gamma, arithmetic=arithmetic, loss=loss)
    if limit is None:
        _, choices = least(options)
    else:
        choices = within(options, allowed(limit)) or []
        if not choices:
            raise does_not_fit(options, limit, batch_of(example_inputs))
    return _plan(options.profile, options, choices, found, limit, gamma, arithmetic)


def options_of(
    model: nn.Module,
    example_inputs: Any,
    found: Discovery,
    *,
    gamma: Fraction,
    arithmetic: str,
    loss: Callable[[Any], Tensor] | None,
) -> Options:
    """What can be chosen for a model, measured; the arguments are those of `fitted`.

    Raises:
        ConversionError: the model has nothing that could be recomputed.
    """
    profile = profile_of(model, example_inputs, found, gamma=gamma, arithmetic=arithmetic, loss=loss)
    if not profile.units:
        raise ConversionError(
            f"{type(model).__name__} has no part that could be recomputed, so there is nothing to plan"
        )
    return Options(profile)


def batch_of(example_inputs: Any) -> int | None:
    """The batch size that all tensors of the example have in front; None if they have none in common."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_in(example_inputs)}
    return sizes.pop() if len(sizes) == 1 else None


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
            PlannedStream(s.path, s.blocks, s.arguments, s.magnitude, s.start_magnitude, s.spread)
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
