"""The choice for each unit that takes the least time within a budget: dynamic programming over the units.

Bytes that are held in front of a unit are counted in cells of a grid. Rounded down they give a time that no choice
within the budget can go below, and often choices that fit; where these do not, bytes are rounded up: what is found then
always fits. Where none is found so, those that hold the fewest bytes may still fit; these need no grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from momentumnet.planner.profiles.choice import Choice, Front, Way
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.options import Option, Options
from momentumnet.planner.searching.simulate import simulated

CELLS = 2048


def within(options: Options, budget: int, cells: int = CELLS) -> list[Choice] | None:
    """The choices that take the least time in so many bytes; None if there are none."""
    quickest = _quickest(options, budget, cells)
    if quickest is None or peak_of(simulated(options.profile, quickest)).bytes <= budget:
        return quickest
    room = budget
    while (found := _searched(options, room, cells, up=True)) is not None:
        above = options.above(found, budget)
        if not above:
            return found
        room -= above
        if room <= 0:
            break
    return fewest(options, budget)


def least_seconds(options: Options, budget: int, cells: int = CELLS) -> float:
    """What all choices that fit take more than keeping everything, or longer; infinite if none fits."""
    found = _quickest(options, budget, cells)
    return math.inf if found is None else options.total_seconds(found)


def _quickest(options: Options, budget: int, cells: int) -> list[Choice] | None:
    """The choices of the least time with bytes rounded down; asked for by plans and by their bound alike."""
    known = options.found_quickest
    if (budget, cells) not in known:
        known[budget, cells] = _searched(options, budget, cells, up=False)
    return known[budget, cells]


def _searched(options: Options, budget: int, cells: int, *, up: bool) -> list[Choice] | None:
    count, always = len(options.profile.units), options.always
    best = {(0, Front.NOTHING): np.where(np.arange(cells) == 0, 0.0, np.inf)}
    leading: dict[tuple[int, Front], list[_Step]] = {}
    for start in range(count):
        for front in Front:
            times = best.get((start, front))
            if times is None:
                continue
            first = int(np.isfinite(times).argmax())  # cells in front of it are not reached
            for option in options.at(start, front):
                fitting = (budget - always[start] - option.need) * cells // budget + 1
                shift = (option.held * cells + (budget - 1 if up else 0)) // budget
                reach = min(fitting, cells - shift, cells)
                if reach <= first:
                    continue
                key = (option.choices[-1].stop, option.behind)
                if key not in best:
                    best[key] = np.full(cells, np.inf)
                target = best[key][shift + first : shift + reach]
                np.minimum(target, times[first:reach] + option.seconds, out=target)
                leading.setdefault(key, []).append(_Step(front, option, shift, first, reach))
    ends = {
        front: max(0, (budget - always[count] - loss) * cells // budget + 1)
        for front, loss in options.loss_bytes.items()
    }
    return _cheapest(count, best, leading, ends)


class _Step(NamedTuple):
    """An option as the search takes it: from cells ``first`` to ``reach`` behind a front, ``shift`` cells on."""

    front: Front
    option: Option
    shift: int
    first: int
    reach: int

    def time_at(self, cell: int, best: Mapping[tuple[int, Front], np.ndarray]) -> float:
        """The time in which it comes to a cell."""
        before = cell - self.shift
        if not self.first <= before < self.reach:
            return math.inf
        return float(best[self.option.choices[0].start, self.front][before] + self.option.seconds)


def _cheapest(
    count: int,
    best: Mapping[tuple[int, Front], np.ndarray],
    leading: Mapping[tuple[int, Front], Sequence[_Step]],
    fitting: dict[Front, int],
) -> list[Choice] | None:
    """The choices that lead to the least time behind the last unit, in so many cells as the loss fits behind."""
    times = {
        front: float(best[count, front][:cells].min())
        for front, cells in fitting.items()
        if (count, front) in best and cells
    }
    front = min(times, key=lambda front: times[front], default=None)
    if front is None or not math.isfinite(times[front]):
        return None
    place, at = count, int(best[count, front][: fitting[front]].argmin())
    found: list[Choice] = []
    while place:
        time = best[place, front][at]
        step = next(step for step in leading[place, front] if step.time_at(at, best) == time)
        found = [*step.option.choices, *found]
        place, front, at = step.option.choices[0].start, step.front, at - step.shift
    return found


def fewest(options: Options, budget: int) -> list[Choice] | None:
    """The choices that fit into so many bytes and hold the fewest when the forward ends; None if none fit."""
    found, _ = _fewest(options, budget)
    return found


def _fewest(options: Options, budget: int) -> tuple[list[Choice] | None, int]:
    """`fewest`; and if nothing fits, bytes by which a budget has to be larger, at least, for anything to come of it."""
    count, always = len(options.profile.units), options.always
    best: dict[tuple[int, Front], tuple[int, Front, Option | None]] = {(0, Front.NOTHING): (0, Front.NOTHING, None)}
    missing: set[int] = set()
    for start in range(count):
        for front in Front:
            if (start, front) not in best:
                continue
            held = best[start, front][0]
            room = budget - always[start] - held
            for option in options.at(start, front):
                key = (option.choices[-1].stop, option.behind)
                if option.need > room:
                    missing.add(option.need - room)
                elif key not in best or held + option.held < best[key][0]:
                    best[key] = (held + option.held, front, option)
    ends = [
        (best[count, front][0] + options.loss_bytes[front], place, front)
        for place, front in enumerate(Front)
        if (count, front) in best
    ]
    if not ends:
        return None, min(missing, default=1)
    found = _walked_back(best, count, min(ends)[2])
    short = max(0, min(ends)[0] + always[count] - budget) or options.above(found, budget)
    return (None, min({short, *missing})) if short else (found, 0)


def _walked_back(
    best: Mapping[tuple[int, Front], tuple[int, Front, Option | None]], place: int, front: Front
) -> list[Choice]:
    """The choices that lead there."""
    found: list[Choice] = []
    while (entry := best[place, front])[2] is not None:
        found = [*entry[2].choices, *found]
        place, front = entry[2].choices[0].start, entry[1]
    return found


def least(options: Options) -> tuple[int, list[Choice]]:
    """The least budget that choices are found for, and the quickest of those.

    What options are said to need may be more than they take together. So choices that take as little may not be found
    again in so many bytes: then they are those that are returned.
    """
    profile = options.profile
    found = [Choice(0, len(profile.units), Way.STORED)]
    low, high = 0, peak_of(simulated(profile, found)).bytes
    while high - low > 1:
        middle = (low + high) // 2
        choices, missing = _fewest(options, middle)
        if choices is None:
            low = middle + missing - 1
        else:
            found, high = choices, peak_of(simulated(profile, choices)).bytes
    found = within(options, high) or found
    return peak_of(simulated(profile, found)).bytes, found
