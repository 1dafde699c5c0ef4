"""Where a stream may be cut is told by a walk over it, and is what simulating each cut tells."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from momentumnet.arithmetic.fixed_point import INT32
from momentumnet.planner.profiles.choice import Choice, Front, Way
from momentumnet.planner.profiles.flow import Flow
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Cost, Handover, Unit
from momentumnet.planner.searching.cuts import cuts_of
from momentumnet.planner.searching.moments import peak_of
from momentumnet.planner.searching.options import Options
from momentumnet.planner.searching.simulate import Simulation

FRONTS = (Front.NOTHING, Front.STORED, Front.GIVEN)


def random_stream(seed: int, blocks: int, *, before: int = 2, behind: int = 2) -> Profile:
    """A stream between other units; all that a simulation counts is there, some of it in some of the streams."""
    rng = random.Random(seed)
    sizes: dict[int, int] = {}

    def key(most: int = 20) -> int:
        sizes[len(sizes)] = rng.randint(1, most)
        return len(sizes) - 1

    units, glue, output = [], [], key()
    frozen = rng.choice(
        (0, 0, rng.randint(0, before + blocks))
    )  # parts in front, which no gradient reaches, and which save nothing
    for index in range(before + blocks + behind):
        entry, output = output, key()
        saved = {key() for _ in range(rng.randint(0, 2))}
        saved |= {end for end in (entry, output) if rng.random() < 0.6}
        saved = saved if index >= frozen else set()
        cost = random_cost(rng, sizes[output])
        cost = cost.leaving(cost.parameter_bytes, has_backward=index >= frozen)
        of_stream = 0 if before <= index < before + blocks else None
        units.append(Unit((f"unit{index}",), of_stream, frozenset(saved), frozenset({entry}), Handover.ALL, cost))
        if rng.random() < 0.3:
            glue.append((index, frozenset({key()})))
    places = 2 * len(units) + 1
    flow = Flow(*(tuple(rng.choice((0, 0, rng.randint(1, 50))) for _ in range(places)) for _ in range(5)))
    state = random_state(rng)
    returned = frozenset(rng.sample(sorted(sizes), rng.randint(0, 4)))
    loss = Cost(0, 0, 1, 2, 3, 1, 0)
    return Profile(tuple(units), tuple(glue), sizes, (state,), loss, outputs=returned, flow=flow)


def random_cost(rng: random.Random, output_bytes: int) -> Cost:
    work = rng.randint(1, 40)
    return Cost(
        rng.random(),
        rng.random(),
        free_peak=work,
        forward_peak=work + rng.randint(0, 40),
        backward_peak=rng.randint(1, 60),
        output_bytes=output_bytes,
        parameter_bytes=rng.randint(0, 9),
        cast_bytes=rng.choice((0, rng.randint(1, 9))),
    )


def random_state(rng: random.Random) -> StreamProfile:
    return StreamProfile(
        "stream",
        rng.randint(1, 60),
        rng.choice((torch.float32, torch.bfloat16)),
        Fraction(1, 8),
        rng.choice((INT32, INT32, None)),
        22,
        0.1,
        together=rng.random() < 0.3,
        native=rng.random() < 0.5,
    )


def simulated_bytes(profile: Profile, choices: tuple[Choice, ...], front: Front) -> tuple[int, int, int]:
    """Held behind the units, and the most in forward and backward, of one simulation of all moments."""
    simulation = Simulation(profile, choices, front)
    simulation.forward()
    held, count = simulation.held_behind(), len(simulation.moments)
    simulation.backward()
    between = sum(profile.bytes_of(profile.glue_at(at)) for at in range(simulation.start + 1, simulation.stop))
    forward, backward = peak_of(simulation.moments[:count]).bytes, peak_of(simulation.moments[count:]).bytes
    return held - between, forward, backward


def assert_cuts_are_simulated(profile: Profile, start: int, stop: int, front: Front) -> None:
    cuts = cuts_of(profile, start, stop, front)
    ways = (Way.REVERSIBLE, Way.CHECKPOINTED)
    expected = [
        (Choice(start, place, way), Choice(place, stop, Way.STORED)) for place in range(start + 1, stop) for way in ways
    ]
    assert sorted(map(repr, cuts)) == sorted(map(repr, expected))
    casts, gradients = profile.casts_before[start], profile.gradients_behind[stop]
    for cut, taken in cuts.items():
        assert taken.behind is Front.STORED
        assert (taken.held, taken.forward + casts, taken.backward + gradients) == simulated_bytes(profile, cut, front)


@pytest.mark.parametrize("seed", range(60))
def test_each_cut_takes_what_its_own_simulation_says(seed: int) -> None:
    blocks = 2 + seed % 11
    profile = random_stream(seed, blocks)
    for front in FRONTS:
        assert_cuts_are_simulated(profile, 2, 2 + blocks, front)


def test_a_stream_alone_is_cut() -> None:
    for seed in range(10):
        assert_cuts_are_simulated(random_stream(seed, 6, before=0, behind=0), 0, 6, Front.NOTHING)


@pytest.mark.parametrize("shared", ["saved", "entry", "glue"])
def test_blocks_that_share_storages_from_afar_are_simulated_each(shared: str) -> None:
    profile = random_stream(3, 6)
    common = frozenset({max(profile.sizes) + 1})
    profile.sizes[max(profile.sizes) + 1] = 1000
    units = list(profile.units)
    units[3] = replace(units[3], saved=units[3].saved | common)
    far = units[6]
    if shared == "glue":
        profile = replace(profile, glue=(*profile.glue, (6, common)))
    else:
        units[6] = replace(far, saved=far.saved | common) if shared == "saved" else replace(far, entry=common)
    profile = replace(profile, units=tuple(units))
    for front in FRONTS:
        for option in Options(profile).at(2, front):
            held, forward, backward = simulated_bytes(profile, option.choices, front)
            assert (option.held, option.need) == (held, max(forward, backward))


def test_options_of_a_stream_walk_over_it_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often for a long stream as for a short one: not once for each of its blocks."""
    walked = 0
    forward_of = Simulation.forward_of

    def counted(simulation: Simulation, index: int) -> None:
        nonlocal walked
        walked += 1
        forward_of(simulation, index)

    monkeypatch.setattr(Simulation, "forward_of", counted)
    times = []
    for blocks in (20, 80):
        walked = 0
        found = Options(random_stream(0, blocks)).at(2, Front.NOTHING)
        assert len(found) == 2 * blocks + 1
        times.append(walked / blocks)
    assert times[1] <= 1.2 * times[0]
