"""The coarser scales that the places of a stream have had to take, and how they become finer again.

What one outlier has asked for is not to cost precision for good: where nothing asks for it any more, each pass takes
back half of the bits that are too many. But a pass that needs them again is played again. So where one did, passes wait
before they take bits back, twice as long each time: outliers that keep coming have no more than one pass in MOST_CALM
played again.

That goes for outliers beside which the usual values still have a scale that tells them apart. One that would leave them
too few bits (``spare``) is played again each time it comes, and nothing is kept of it, unless the next pass asks for
as much: values that have grown for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from momentumnet.core.state.watch import Seen

# Bits that are kept above what the values ask for.
KEPT_BITS = 2
# Passes without need for its scale that a place waits for, where bits that were taken back had to be taken again: at
# first, and at most.
FIRST_CALM = 4
MOST_CALM = 64


@dataclass(frozen=True)
class Reached:
    """What passes have asked for.

    Attributes:
        powers: by place, the magnitude as a power of two for which a coarser scale had to be taken there. Not the
            scale: at another gamma, or in another type, a scale for the same values is another one.
        wait: passes in a row without need for a scale, behind which it becomes finer.
        calm: by place, how many there have been.
        refined: the places that have become finer since a scale had to be taken anew.
        once: by place, what the last pass alone has asked for, of which nothing is kept yet; None where no pass has
            told anything.
    """

    powers: Mapping[int, int] = field(default_factory=dict)
    wait: int = 0
    calm: Mapping[int, int] = field(default_factory=dict)
    refined: frozenset[int] = frozenset()
    once: Mapping[int, int] | None = None

    def behind(
        self,
        seen: Sequence[Seen],
        asked: Mapping[int, int],
        came_with: int,
        power_of: Callable[[float], int],
        spare: float,
    ) -> Reached:
        """What holds behind a pass.

        A scale holds from its place to the stream's end, or to the next one. So it goes by the values in between.

        Args:
            seen: what its steps have reported.
            asked: by place, the powers that it has asked for.
            came_with: the power of the scale that it began with.
            power_of: the power that a magnitude asks for.
            spare: bits by which a scale may be too coarse.
        """
        kept, once = self._kept(asked, came_with, spare)
        powers = {**self.powers, **{place: max(power, self.powers.get(place, power)) for place, power in kept.items()}}
        wait, refined = self.wait, self.refined
        if any(power > self.powers.get(place, power) for place, power in powers.items() if place in refined):
            wait, refined = min(max(2 * wait, FIRST_CALM), MOST_CALM), frozenset()
        calm, greatest = dict(self.calm), 0.0
        for entry in reversed(seen):
            place, greatest = entry.place, max(greatest, math.ldexp(entry.magnitude, -entry.exponent))
            needed = power_of(greatest) + KEPT_BITS
            if place in powers:
                greatest = 0.0
            if place in once or place not in self.powers or not powers[place] == self.powers[place] > needed:
                calm.pop(place, None)
            elif powers[place] - needed > spare:
                powers[place], refined = needed, refined | {place}
            elif calm.get(place, 0) < wait:
                calm[place] = calm.get(place, 0) + 1
            else:
                powers[place], refined = (powers[place] + needed) // 2, refined | {place}
        return Reached(powers, wait, calm, refined, once)

    def _kept(self, asked: Mapping[int, int], came_with: int, spare: float) -> tuple[dict[int, int], dict[int, int]]:
        """By place, the powers of which a scale is kept, and those that have to be asked for once more.

        What is asked for in front of a place counts for it as little as what is asked for there: values that grow over
        several blocks ask in several.
        """
        kept: dict[int, int] = {}
        once: dict[int, int] = {}
        for place, power in asked.items():
            earlier = [known for at, known in self.powers.items() if at <= place]
            known = max(came_with, (self.once or {}).get(place, came_with), *earlier)
            (once if self.once is not None and power - known > spare else kept)[place] = power
        return kept, once

    def state(self) -> dict[str, Any]:
        """What passes have asked for, as numbers: pairs of place and power, or number of passes."""
        return {
            "reached": [[place, power] for place, power in sorted(self.powers.items())],
            "wait": self.wait,
            "calm": [[place, passes] for place, passes in sorted(self.calm.items())],
            "refined": sorted(self.refined),
            "once": None if self.once is None else [[place, power] for place, power in sorted(self.once.items())],
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], blocks: int) -> Reached:
        """What `state` gave; states of before have ``reached`` alone.

        Raises:
            ValueError: it is something else; in words.
        """
        reached, calm, once = state["reached"], state.get("calm", []), state.get("once")
        wait, refined = state.get("wait", 0), state.get("refined", [])
        if not all(_are_pairs(pairs, blocks) for pairs in (reached, calm, once or [])):
            raise ValueError(
                f"reached and once must hold pairs of a place among {blocks} blocks and a power of two, and calm of a "
                f"place and a number of passes, got {reached!r}, {once!r} and {calm!r}"
            )
        are_places = isinstance(refined, Sequence) and _are_pairs([[place, 0] for place in refined], blocks)
        if type(wait) is not int or not 0 <= wait <= MOST_CALM or not are_places:
            raise ValueError(f"wait must be a number of passes and refined hold places, got {wait!r} and {refined!r}")
        return cls(dict(reached), wait, dict(calm), frozenset(refined), None if once is None else dict(once))


def _are_pairs(pairs: Any, blocks: int) -> bool:
    """Whether these are pairs of a place in a stream and a whole number."""
    if not isinstance(pairs, Sequence):
        return False
    numbers = [list(pair) if isinstance(pair, Sequence) else [] for pair in pairs]
    return all(len(pair) == 2 and all(type(n) is int for n in pair) and 0 <= pair[0] < blocks for pair in numbers)
