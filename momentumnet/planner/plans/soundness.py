"""Whether a plan can be followed as it stands: a file may have been edited by hand, a plan made over by a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core.passes.settings import ARITHMETICS
from momentumnet.planner.machine.budget import GRADIENTS
from momentumnet.planner.profiles.choice import KEPT, Way
from momentumnet.planner.searching.methods import CHECKPOINT, MOMENTUM, STORED
from momentumnet.planner.searching.moments import PHASES

if TYPE_CHECKING:
    from momentumnet.planner.plans.training_plan import PlannedStream, PlannedUnit, TrainingPlan

_WAYS = tuple(way.value for way in Way)


def check(plan: TrainingPlan) -> None:
    """What a plan says can be done, and fits together.

    Raises:
        ValueError: it is otherwise; says what.
    """
    fault = next(_faults(plan), None)
    if fault is not None:
        raise ValueError(fault)


def _faults(plan: TrainingPlan) -> Iterator[str]:
    yield from _not_one_of("arithmetic", plan.arithmetic, ARITHMETICS)
    yield from _not_one_of("gradients", plan.gradients, GRADIENTS)
    try:
        exact_gamma(plan.gamma)
    except ValueError as error:
        yield str(error)
    if bool(plan.gamma) < bool(plan.streams):
        yield "gamma is 0, at which no stream moves, and there are streams"
    if not plan.units:
        yield "there are no units"
    for at, unit in enumerate(plan.units):
        yield from _not_one_of(f"units[{at}].way", unit.way, _WAYS)
        if not unit.names:
            yield f"units[{at}].names is empty"
    if not min(plan.seconds, plan.least_seconds, plan.stored_seconds):
        yield "a step takes more than 0 seconds"
    momentum = {stream.path for stream in plan.streams}
    yield from _faults_outside(plan.units, momentum)
    for stream in plan.streams:
        yield from _faults_of_stream(stream, plan.runs_of(stream))
    for moment in (*plan.moments, *(moment for method in plan.methods for moment in method.moments)):
        yield from _not_one_of("the phase of a moment", moment.phase, PHASES)
    for method in plan.methods:
        yield from _not_one_of("the name of a method", method.name, (STORED, CHECKPOINT, MOMENTUM))


def _not_one_of(what: str, found: str, allowed: Sequence[str]) -> Iterator[str]:
    if found not in allowed:
        yield f"{what} has to be one of {', '.join(map(repr, allowed))}, and is {found!r}"


def _faults_outside(units: Sequence[PlannedUnit], momentum: Set[str]) -> Iterator[str]:
    for at, unit in enumerate(units):
        is_block = unit.stream in momentum
        if unit.way == Way.REVERSIBLE.value and not is_block:
            yield f"units[{at}] is reversible, and no stream's block: nothing gives its input again"
        if unit.way == Way.OFFLOADED.value and at + 1 == len(units):
            yield f"units[{at}] is offloaded, and no unit runs behind it"
    ways: dict[str, str] = {}
    for unit in units:
        for name in unit.names if unit.stream not in momentum else ():
            if ways.setdefault(name, unit.way) != unit.way:
                yield f"module {name!r} is {ways[name]} in one call, and {unit.way} in another one"
    places: dict[int, list[int]] = {}
    for at, unit in enumerate(units):
        if unit.way == Way.CHECKPOINTED.value and unit.stream not in momentum:
            places.setdefault(unit.group, []).append(at)
    for group, found in places.items():
        if any(behind - before != 1 for before, behind in pairwise(found)):
            yield f"units {found} are recomputed together as group {group}, and do not follow one another"


def _faults_of_stream(stream: PlannedStream, runs: Sequence[Sequence[PlannedUnit]]) -> Iterator[str]:
    name = f"stream {stream.path or '(root)'!r}"
    if not stream.blocks:
        yield f"{name} has no blocks"
    if len(stream.arguments) != len(stream.blocks):
        yield f"{name} has {len(stream.blocks)} blocks and {len(stream.arguments)} arguments"
    for companion in stream.companions:
        if not len(companion.arguments) == len(companion.outputs) == len(stream.blocks):
            yield f"{name} has {len(stream.blocks)} blocks, and a companion that not each of them takes and returns"
        if 0 in companion.outputs:
            yield f"{name} has a companion that is returned first, as the stream's own tensor is"
    blocks = [(block,) for block in stream.blocks]
    if not runs or any([unit.names for unit in run] != blocks for run in runs):
        yield f"{name} has other blocks than its units are"
        return
    if any([unit.way for unit in run] != [unit.way for unit in runs[0]] for run in runs):
        yield f"the blocks of {name} come in one way when it runs first, and in another one later"
    ways = [way for way, _ in groupby(unit.way for unit in runs[0])]
    recomputed = [way for way in ways if Way(way) not in KEPT] if set(ways) <= set(_WAYS) else []
    if len(recomputed) > 1 or recomputed != ways[: len(recomputed)]:
        yield (
            f"the blocks of {name} come by {', '.join(map(repr, ways))} in turn: the first ones can be checkpointed or "
            "reversible, and those behind them stored"
        )
