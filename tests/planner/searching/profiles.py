"""Profiles of steps drawn by chance, and all choices that there are for one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction

import torch

from momentumnet.arithmetic.fixed_point import INT32
from momentumnet.planner.machine.host_link import HostLink
from momentumnet.planner.profiles.choice import Choice, Way
from momentumnet.planner.profiles.flow import Flow
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Cost, Handover, Unit
from momentumnet.planner.searching.options import LONGEST_SEGMENT

# Of the random units, smaller storages are not offloaded.
SMALLEST = 4
LINK = HostLink(20, 30)


def random_profile(seed: int, streams: int) -> Profile:
    """Units whose inputs the unit before keeps, or nobody; glue between some; streams of two blocks and more."""
    rng = random.Random(seed)
    sizes: dict[int, int] = {}
    units: list[Unit] = []
    glue: list[tuple[int, frozenset[int]]] = []

    def key(size: int) -> int:
        sizes[len(sizes)] = size
        return len(sizes) - 1

    of_unit = [stream for stream in range(streams) for _ in range(rng.randint(2, 3))] if streams else []
    of_unit = [
        *([None] * rng.randint(0, 2)),
        *of_unit,
        *([None] * rng.randint(0 if streams else 4, 3 if streams else 6)),
    ]
    output = key(rng.randint(1, 9))
    for index, stream in enumerate(of_unit):
        entry, output = output, key(rng.randint(1, 9))
        if stream is not None or (index and of_unit[index - 1] is not None):
            entry = key(sizes[entry])
        inside = {key(rng.randint(1, 20)) for _ in range(rng.randint(1, 3))}
        saved = inside | ({entry} if rng.random() < 0.7 else set()) | ({output} if rng.random() < 0.5 else set())
        work = rng.randint(1, 20)
        cost = Cost(rng.random(), rng.random(), work, work + rng.randint(0, 20), rng.randint(1, 30), sizes[output], 2)
        handover = Handover.ALL if rng.random() < 0.8 else Handover.PART
        units.append(Unit((f"unit{index}",), stream, frozenset(saved), frozenset({entry}), handover, cost))
        if rng.random() < 0.3:
            glue.append((index + 1, frozenset({key(rng.randint(1, 9))})))
    profiles = tuple(
        StreamProfile(f"stream{n}", 4, torch.float32, Fraction(1, 8), INT32, 22, 0.1) for n in range(streams)
    )
    return Profile(tuple(units), tuple(glue), sizes, profiles, Cost(0, 0, 1, 2, 3, 1, 0))


def repeating_profile(seed: int) -> Profile:
    """Units that are the same but for one of them, which differs in one thing."""
    rng = random.Random(seed)
    what = ("inside", "cost", "entry", "output", "returned", "waiting", "glue", "size")[seed % 8]
    sizes: dict[int, int] = {}

    def key(size: int) -> int:
        sizes[len(sizes)] = size
        return len(sizes) - 1

    count, odd = 8, rng.randrange(2, 7)
    outputs = [key(7 if index == odd and what == "size" else 4) for index in range(count + 1)]
    keeps_entry, keeps_output, work = rng.random() < 0.5, rng.random() < 0.5, rng.randint(1, 20)
    units, glue = [], []
    for index in range(count):
        differs = what if index == odd else None
        saved = {key(25 if differs == "inside" else 9)}
        saved |= {outputs[index]} if keeps_entry != (differs == "entry") else set()
        saved |= {outputs[index + 1]} if keeps_output != (differs == "output") else set()
        cost = Cost(1, 1, work, work + 5, 60 if differs == "cost" else 25, 4, 2, 1)
        units.append(Unit((f"unit{index}",), None, frozenset(saved), frozenset({outputs[index]}), Handover.ALL, cost))
        if differs == "glue":
            glue.append((index, frozenset({key(30)})))
    waiting = tuple(50 * (place == 2 * odd + 1 and what == "waiting") for place in range(2 * count + 1))
    flow = Flow(waiting, *[(0,) * len(waiting)] * 4)
    returned = frozenset({outputs[odd if what == "returned" else -1]})
    return Profile(tuple(units), tuple(glue), sizes, (), Cost(0, 0, 1, 2, 3, 1, 0), outputs=returned, flow=flow)


def all_choices(profile: Profile, start: int = 0) -> Iterator[list[Choice]]:
    """Every list of choices there is."""
    units = profile.units
    if start == len(units):
        yield []
        return
    stop = start + 1
    if units[start].stream is not None:
        while stop < len(units) and units[stop].stream == units[start].stream:
            stop += 1
        heads: list[list[Choice]] = kept(profile, start, stop)
        for middle, way in itertools.product(range(start + 1, stop + 1), (Way.REVERSIBLE, Way.CHECKPOINTED)):
            heads += [[Choice(start, middle, way), *tail] for tail in kept(profile, middle, stop)]
    else:
        heads = [[Choice(start, start + 1, Way.STORED)], [Choice(start, start + 1, Way.CHECKPOINTED)]]
        if profile.link is not None and start + 1 < len(units):
            heads.append([Choice(start, start + 1, Way.OFFLOADED)])
        for end in range(start + 2, min(len(units), start + LONGEST_SEGMENT) + 1):
            if units[end - 1].handover is not Handover.ALL or units[end - 1].stream is not None:
                break
            heads.append([Choice(start, end, Way.CHECKPOINTED)])
    for head in heads:
        for rest in all_choices(profile, head[-1].stop):
            yield head + rest


def kept(profile: Profile, start: int, stop: int) -> list[list[Choice]]:
    """The blocks from ``start`` on are stored; of these the first ones may be offloaded."""
    found = [[Choice(start, stop, Way.STORED)] if start < stop else []]
    for cut in range(start + 1, stop + 1) if profile.link is not None else ():
        if cut < len(profile.units):
            tail = [Choice(cut, stop, Way.STORED)] if cut < stop else []
            found.append([Choice(start, cut, Way.OFFLOADED), *tail])
    return found
