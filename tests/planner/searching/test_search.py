"""The search finds what trying all choices finds, and what it finds fits."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from momentumnet.planner.machine.host_link import HostLink
from momentumnet.planner.profiles.choice import Choice, Front, Way
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.search import fewest, least, least_seconds, within
from momentumnet.planner.searching.simulate import Simulation, simulated
from momentumnet.recompute.saved import offloaded_tensors
from tests.planner.searching.profiles import SMALLEST, all_choices, random_profile, repeating_profile


def seconds(profile: Profile, choices: list[Choice]) -> float:
    total = sum(copying(profile, choices))
    for choice in choices:
        for unit in profile.units[choice.start : choice.stop] if choice.way not in (Way.STORED, Way.OFFLOADED) else ():
            total += unit.cost.forward_seconds + (0.1 if choice.way is Way.REVERSIBLE else 0.0)
    return total


def test_what_is_found_for_units_holds_for_others_alike() -> None:
    simulated_once = searched = 0
    for profile in map(repeating_profile, range(24)):
        together = Options(profile)
        for start, front in itertools.product(range(len(profile.units)), (Front.NOTHING, Front.STORED)):
            for option in together.at(start, front) if start or front is Front.NOTHING else ():
                simulation = Simulation(profile, option.choices, front)
                simulation.forward()
                simulation.backward()
                assert option.need == peak_of(simulation.moments).bytes
                searched += 1
        simulated_once += len(together._taken)
    assert simulated_once < 0.9 * searched


def copying(profile: Profile, choices: list[Choice]) -> Iterator[float]:
    """What the copies of each offloaded unit take longer than what is computed beside them."""
    ways = [choice.way for choice in choices for _ in range(choice.start, choice.stop)]
    for index, way in enumerate(ways):
        if way is Way.OFFLOADED:
            unit, behind = profile.units[index], profile.units[index + 1]
            sizes = [profile.sizes[key] for key in unit.saved if profile.sizes[key] >= SMALLEST]
            count = sum(sizes)
            beside = unit.cost.forward_seconds
            beside += behind.cost.forward_seconds if ways[index + 1] is not Way.OFFLOADED else 0
            yield max(0, count / 20 - beside) + max(0, count / 30 - behind.cost.backward_seconds) + 2e-5 * len(sizes)


@pytest.mark.parametrize(
    ("profile", "link"),
    [
        *((random_profile(seed, streams), None) for streams, seed in itertools.product(range(3), range(8))),
        *(
            (random_profile(seed, streams), HostLink(20, 30))
            for streams, seed in itertools.product(range(3), (0, 1, 2, 5))
        ),
        *((repeating_profile(seed), None) for seed in range(3)),
    ],
)
def test_as_good_as_trying_all(profile: Profile, link: HostLink | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", SMALLEST)
    profile = replace(profile, link=link)
    options = Options(profile)
    tried = [
        (peak_of(simulated(profile, choices)).bytes, seconds(profile, choices)) for choices in all_choices(profile)
    ]
    least_peak, most = min(peak for peak, _ in tried), max(peak for peak, _ in tried)
    for budget in range(least_peak, most + 1, max(1, (most - least_peak) // 12)):
        best = min(time for peak, time in tried if peak <= budget)
        # Cells of the grid that are finer than bytes, so that rounding costs nothing.
        found = within(options, budget, cells=16 * budget)
        assert found is not None
        assert peak_of(simulated(profile, found)).bytes <= budget
        assert math.isclose(seconds(profile, found), best, abs_tol=1e-9)
        for cells in (20, 200, 16 * budget):  # rounded down a choice may fit that does not
            assert least_seconds(options, budget, cells=cells) <= best + 1e-9
        assert math.isclose(least_seconds(options, budget, cells=16 * budget), best, abs_tol=1e-9)
    assert within(options, least_peak - 1, cells=16 * least_peak) is None


@pytest.mark.parametrize("seed", range(4))
def test_what_fits_to_the_byte_is_found_on_a_coarse_grid(seed: int) -> None:
    """Rounded up, units that keep something would take a cell each more than they do."""
    profile = random_profile(seed, streams=0)
    stored = [Choice(0, len(profile.units), Way.STORED)]
    found = within(Options(profile), peak_of(simulated(profile, stored)).bytes, cells=20)
    assert found is not None
    assert seconds(profile, found) == 0


@pytest.mark.parametrize("streams", range(3))
@pytest.mark.parametrize("seed", range(6))
def test_the_least_is_the_least_to_the_byte(seed: int, streams: int) -> None:
    profile = random_profile(seed, streams)
    smallest = min(peak_of(simulated(profile, choices)).bytes for choices in all_choices(profile))
    budget, choices = least(Options(profile))
    assert budget == smallest == peak_of(simulated(profile, choices)).bytes
    assert fewest(Options(profile), smallest - 1) is None


def counted_twice(seed: int) -> Profile:
    """Units of which the options count more than the step takes: weights that are cast, an argument of two neighbours.

    The loss takes the most, behind all casts there could be; units that are stored have theirs among what they keep.
    """
    profile, rng = random_profile(seed, seed % 3), random.Random(seed)
    sizes = {**profile.sizes, len(profile.sizes): rng.randint(5, 20)}
    first = rng.randrange(len(profile.units) - 1)
    units = [
        replace(
            unit,
            cost=replace(unit.cost, cast_bytes=rng.randint(0, 9)),
            entry=unit.entry | ({len(profile.sizes)} if index in (first, first + 1) else set()),
        )
        for index, unit in enumerate(profile.units)
    ]
    return replace(profile, units=tuple(units), sizes=sizes, loss=replace(profile.loss, forward_peak=80))


@pytest.mark.parametrize("seed", [9, 24, 40, 51, 108, 183, *range(6)])
def test_the_least_is_what_its_choices_take(seed: int) -> None:
    profile = counted_twice(seed)
    budget, choices = least(Options(profile))
    assert budget == peak_of(simulated(profile, choices)).bytes
    stored = [Choice(0, len(profile.units), Way.STORED)]
    assert budget <= peak_of(simulated(profile, stored)).bytes


@pytest.mark.parametrize("seed", range(6))
def test_what_fits_is_found_on_any_grid(seed: int) -> None:
    """Where the grid finds nothing, rounded up, there is still the choice that holds the least."""
    options = Options(random_profile(seed, 1))
    budget, _ = least(options)
    found = within(options, budget, cells=3)
    assert found is not None
    assert peak_of(simulated(options.profile, found)).bytes == budget
