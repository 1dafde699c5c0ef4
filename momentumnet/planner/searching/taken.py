"""What units in a row take in bytes, simulated by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from momentumnet.planner.profiles.choice import Choice, Front, Way
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.searching.simulate import Simulation

_BEHIND = {Way.STORED: Front.STORED, Way.OFFLOADED: Front.OFFLOADED}


@dataclass(frozen=True)
class Taken:
    """What units in a row take in bytes, without what others have left: casts of weights, gradients of parameters.

    Attributes:
        held: until their backward, without glue between them.
        forward: the most at once in their forward.
        backward: the same in their backward.
        behind: what they are for the unit behind them.
    """

    held: int
    forward: int
    backward: int
    behind: Front


class Fullest(Simulation):
    """A part of a step, of whose moments nothing is kept but the most bytes: a search looks at hundreds of parts."""

    most = 0

    def take(self, phase: str, index: int, total: int) -> None:
        if total > self.most:
            self.most = total

    def passed(self) -> int:
        """The most bytes since this was asked before."""
        most, self.most = self.most, 0
        return most


def taken_by(profile: Profile, choices: Sequence[Choice], front: Front) -> Taken:
    """What units take with these choices, behind this front."""
    simulation = Fullest(profile, choices, front)
    simulation.forward()
    held, forward = simulation.held_behind(), simulation.passed()
    simulation.backward()
    start, stop = simulation.start, simulation.stop
    last = choices[-1].way
    behind = Front.GIVEN if simulation.gives_again(stop - 1) else _BEHIND.get(last, Front.NOTHING)
    return Taken(
        held - sum(profile.bytes_of(profile.glue_at(at)) for at in range(start + 1, stop)),
        forward - profile.casts_before[start],
        simulation.passed() - profile.gradients_behind[stop],
        behind,
    )
