"""What a plan is compared with: the same way for all units, as a method without a plan has it."""

from __future__ import annotations

from dataclasses import dataclass

from momentumnet.planner.profiles.choice import Choice, Way
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.searching.moments import Moment
from momentumnet.planner.searching.simulate import simulated

STORED, CHECKPOINT, MOMENTUM = "stored", "checkpoint", "momentum"


@dataclass(frozen=True)
class PlannedMethod:
    """The bytes over the step of a method.

    Attributes:
        name: "stored"; "checkpoint", of each block and part; or "momentum", with all outside of the streams
            checkpointed.
        moments: the bytes.
    """

    name: str
    moments: tuple[Moment, ...]


def methods_of(profile: Profile) -> tuple[PlannedMethod, ...]:
    """What each method takes; momentum only where there are streams for it."""
    return tuple(PlannedMethod(name, tuple(simulated(profile, made))) for name, made in same_way(profile).items())


def same_way(profile: Profile) -> dict[str, list[Choice]]:
    """The choices of each method."""
    choices = {
        STORED: [Choice(0, len(profile.units), Way.STORED)],
        CHECKPOINT: _one_by_one(profile, Way.CHECKPOINTED),
    }
    if any(profile.is_momentum(unit) for unit in range(len(profile.units))):
        choices[MOMENTUM] = _one_by_one(profile, Way.REVERSIBLE)
    return choices


def _one_by_one(profile: Profile, in_streams: Way) -> list[Choice]:
    """Parts outside are checkpointed alone, the blocks of a stream come in one way."""
    found, start = list[Choice](), 0
    while start < len(profile.units):
        stop = profile.end_of_stream(start)
        way = in_streams if profile.is_momentum(start) else Way.CHECKPOINTED
        found.append(Choice(start, stop or start + 1, way))
        start = found[-1].stop
    return found
