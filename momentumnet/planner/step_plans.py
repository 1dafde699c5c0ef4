"""The plans of a training step that was measured: a choice for each unit within a budget, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from momentumnet.planner.advice import does_not_fit
from momentumnet.planner.machine.budget import ANEW, allowed
from momentumnet.planner.plans.training_plan import PlannedStream, PlannedUnit, TrainingPlan
from momentumnet.planner.profiles.choice import Choice, Way, choice_of_each
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.searching.methods import PlannedMethod, methods_of, same_way
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.search import least, least_seconds, within
from momentumnet.planner.searching.simulate import held_between, offloaded_storages, simulated
from momentumnet.planner.trial import Trial, remembered
from momentumnet.streams.finding.discover import Discovery

# So many plans are tried out, and so much may the prediction be off.
TRIALS = 5
OFF = 0.1
# Choices that are predicted to take so much more than the least, as a share, are tried beside it.
NEAR = 0.03
# Unless that one took what was predicted, so closely, as a share: then predictions of the same step are taken to tell
# the others apart (of 16 networks, float32 and bfloat16, at two values of gamma, none had another choice that took less
# by more than 0.02 %; a first step takes up to 0.6 % more than is predicted for one with its scales learned).
EXACT = 0.01
# Bytes, and seconds, that differ by so much, as a share, count as the same: predictions are no better.
CLOSE = 1 / 256
# What is kept of a unit that is recomputed so that it can be compared, at most, and is not predicted: it tells in a
# network of many small ones. Two reports in forward, and two in backward (24 bytes each time, measured on the CPU).
COMPARED = 48


@dataclass(frozen=True)
class MeasuredStep:
    """A training step, traced and measured once, to be planned for whatever budget.

    Attributes:
        found: what the trace has found in the model.
        options: what can be chosen for it.
        gamma: of the streams.
        arithmetic: of the streams.
        batch: size of the example's batch, if it is known.
        elements: of the example's tensors.
        containers: as in `TrainingPlan`.
        gradients: as in `TrainingPlan`.
        parameter_bytes: as in `TrainingPlan`.
        autocast: as in `TrainingPlan`.
        trained_bytes: as in `TrainingPlan`.
        training: as in `TrainingPlan`.
        classes: as in `TrainingPlan`.
        exact_bytes: whether a tensor takes what it asks for. CUDA's allocator hands out up to 1 MiB more, by what lies
            free: then plans that are predicted alike take up to half a percent more or less.
    """

    found: Discovery
    options: Options
    gamma: Fraction
    arithmetic: str
    batch: int | None
    elements: int
    containers: tuple[tuple[str, int], ...]
    gradients: str = ANEW
    parameter_bytes: int = 0
    autocast: str | None = None
    trained_bytes: int | None = None
    training: bool | None = None
    classes: tuple[tuple[str, str], ...] = ()
    exact_bytes: bool = True

    def plan(self, limit: int | None, *, spare: int = 0, trial: Trial | None = None) -> TrainingPlan:
        """The plan that takes the least time in so many bytes; None: in the least there can be, and ``spare``.

        Args:
            limit: the bytes.
            spare: see above.
            trial: measures what a plan's step takes, so that the bytes can be used to the last one; None: a margin is
                left for what the prediction may be off.

        Raises:
            ConversionError: no choice fits; says what the least is, what takes it and what would help.
        """
        if trial is not None:
            return self._tried(limit, remembered(trial), spare)
        if limit is None:
            smallest, fewest = self.least
            if not spare:
                return self._with(fewest, None, smallest)
            room = smallest + spare
            return self._with(within(self.options, room) or fewest, room, room)
        room = allowed(limit)
        found = within(self.options, room) or self._least_below(room)
        if found is None:
            raise does_not_fit(self.options, limit, self.batch)
        return self._with(found, limit, room)

    def _tried(self, limit: int | None, trial: Trial, spare: int) -> TrainingPlan:
        """The quickest plan that was measured to fit, or the one that was measured to take the least.

        Raises:
            ConversionError: none fits.
        """
        room = self.least[0] + spare if limit is None else limit
        best = self._quickest_tried(room, trial) if limit is not None or spare else None
        if best is not None:
            return best
        smallest = self._least_tried(trial)
        if limit is None:
            return replace(smallest, budget=max(room, smallest.measured_peak or 0) if spare else None)
        if smallest.measured_peak is not None and smallest.measured_peak <= limit:
            return replace(smallest, budget=limit)
        raise does_not_fit(self.options, limit, self.batch, measured=smallest.measured_peak)

    def _quickest_tried(self, limit: int, trial: Trial) -> TrainingPlan | None:
        """The quickest plan that was measured to fit; None if none does.

        What is predicted is corrected by what was measured, and tried again: as long as none fits, or much is left. To
        keep all is tried first where it may fit: nothing is quicker.
        """
        room, best, seen = max(1, limit - COMPARED * len(self.options.profile.units)), None, list[list[Choice]]()
        for attempt in range(TRIALS):
            stored = not attempt and peak_of(self.methods[0].moments).bytes <= (1 + OFF) * limit
            choices = self._stored if stored else within(self.options, room) or self._least_below((1 + OFF) * limit)
            if best is None and (choices is None or choices in seen or attempt == TRIALS - 1):
                choices = self._least_below((1 + OFF) * limit)  # before a budget is refused
            if choices is None or choices in seen:
                break
            seen.append(choices)
            plan = self._with(choices, limit, room)
            if best is not None and plan.seconds >= best.seconds * (1 - CLOSE):
                break
            peak = trial(plan)
            if peak is not None and peak <= limit:
                best = replace(plan, measured_peak=peak)
                if all(choice.way is Way.STORED for choice in choices):
                    break
            elif best is not None:
                break
            off = plan.peak / (peak or plan.peak * (1 + OFF))
            before, room = room, int(limit * min(off, 1 + OFF))
            if best is not None and room <= before * (1 + CLOSE):
                break
        return best

    def _least_tried(self, trial: Trial) -> TrainingPlan:
        """Of the choices that are predicted to take the least, or nearly so, those that were measured to.

        Where the least takes what was predicted of it, in exact bytes, no other is tried; where it takes more, also
        those that are predicted to take less than that.
        """
        smallest, fewest = self.least
        found = [fewest, *same_way(self.options.profile).values()]
        plans = {plan.units: plan for plan in (self._with(choices, None, smallest) for choices in found)}
        first, *others = plans.values()
        tried: list[TrainingPlan] = []
        for plan in (first, *sorted(others, key=lambda plan: plan.peak)):
            taken = [found.measured_peak for found in tried if found.measured_peak is not None]
            if plan.peak > (1 + NEAR) * smallest and plan.peak >= min(taken, default=0):
                break
            peak = trial(plan)
            if peak is not None:
                tried.append(replace(plan, measured_peak=peak))
            is_as_predicted = peak is not None and abs(peak - plan.peak) <= EXACT * plan.peak
            if plan is first and is_as_predicted and self.exact_bytes:
                break
        return min(tried, key=lambda plan: (plan.measured_peak, plan.seconds), default=first)

    @cached_property
    def methods(self) -> tuple[PlannedMethod, ...]:
        """What the same way for all units takes."""
        return methods_of(self.options.profile)

    @cached_property
    def least(self) -> tuple[int, list[Choice]]:
        """The least budget that choices are found for, and the quickest of those."""
        return least(self.options)

    def seconds_within(self, limit: int) -> float:
        """A time that no step in so many bytes is predicted to go below; infinite if none fits."""
        return self.own_seconds + least_seconds(self.options, limit)

    @property
    def own_seconds(self) -> float:
        """Of a step that keeps all activations."""
        return self.options.profile.stored_seconds + self.options.profile.momentum_seconds

    @property
    def _stored(self) -> list[Choice]:
        return [Choice(0, len(self.options.profile.units), Way.STORED)]

    def _least_below(self, limit: float) -> list[Choice] | None:
        smallest, choices = self.least
        return choices if smallest <= limit else None

    def _with(self, choices: Sequence[Choice], limit: int | None, room: int) -> TrainingPlan:
        profile, options = self.options.profile, self.options
        moments = simulated(profile, choices)
        seconds, more = self.own_seconds, options.total_seconds(choices)
        return TrainingPlan(
            units=tuple(_planned_units(profile, options, choices)),
            streams=tuple(
                PlannedStream(s.path, s.blocks, s.arguments, s.magnitude, s.start_magnitude, s.spread, s.companions)
                for s in (self.found.streams if self.gamma else ())
            ),
            gamma=self.gamma,
            arithmetic=self.arithmetic,
            budget=limit,
            peak=peak_of(moments).bytes,
            stored_peak=peak_of(self.methods[0].moments).bytes,
            seconds=seconds + more,
            least_seconds=seconds + min(least_seconds(options, room), more),
            stored_seconds=profile.stored_seconds,
            held=held_between(profile, choices),
            moments=tuple(moments),
            methods=self.methods,
            elements=self.elements,
            estimated=profile.estimated,
            offloaded=profile.bytes_of(offloaded_storages(profile, choices)),
            containers=self.containers,
            by_forward=tuple(sorted(self.found.by_forward)),
            gradients=self.gradients,
            parameter_bytes=self.parameter_bytes,
            autocast=self.autocast,
            trained_bytes=self.trained_bytes,
            training=self.training,
            classes=self.classes,
        )


def _planned_units(profile: Profile, options: Options, choices: Sequence[Choice]) -> list[PlannedUnit]:
    units = []
    held = options.held(choices)
    ways = [choice.way for choice in choice_of_each(choices)]
    for group, choice in enumerate(choices):
        for index in range(choice.start, choice.stop):
            unit, stays = profile.units[index], False
            stream = None if unit.stream is None else profile.streams[unit.stream].path
            seconds = options.seconds(Choice(index, index + 1, choice.way))
            if choice.way is Way.OFFLOADED:
                behind_is_offloaded = ways[index + 1] is Way.OFFLOADED
                seconds = profile.exposed_seconds(index, behind_is_offloaded=behind_is_offloaded)
                stays = profile.input_stays(index, front_is_stored=index > 0 and ways[index - 1] is Way.STORED)
            units.append(PlannedUnit(unit.names, stream, choice.way.value, group, held[index], seconds, stays))
    return units
