"""Units that are alike: what is found for some of them in a row holds for others."""

from __future__ import annotations

from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Key


def kinds_of(profile: Profile) -> tuple[int, ...]:
    """For each unit a number that it shares with those that take the same, and share as much with their neighbours.

    Two units are of a kind if they cost the same, the same gradients pass by, and for each storage of one the other has
    one of the same size that as many units use, as far before and behind it, in the same roles.
    """
    uses: dict[Key, list[tuple[int, str]]] = {}
    named = profile.named or (frozenset[Key](),) * len(profile.units)
    for place, unit in enumerate(profile.units):
        roles = {"saved": unit.saved, "entry": unit.entry, "glue": profile.glue_at(place), "named": named[place]}
        for role, keys in roles.items():
            for key in keys:
                uses.setdefault(key, []).append((place, role))
    numbers: dict[object, int] = {}
    found = []
    for place, unit in enumerate(profile.units):
        stays = profile.outputs | unit.filled
        storages = sorted(
            (profile.sizes[key], key in stays, tuple((at - place, role) for at, role in uses.get(key, ())))
            for key in unit.saved | unit.entry | unit.filled | named[place] | profile.glue_at(place)
        )
        flow = profile.flow
        gradients = (flow.around(place), flow.in_front(place), flow.of_parameters(place), flow.summed(place))
        stream = profile.momentum_streams[place]
        start = 0 if stream is None else profile.bytes_of(stream.start)
        own = unit.cost, unit.handover, profile.space_at(place), start
        found.append(numbers.setdefault((own, tuple(storages), gradients), len(numbers)))
    return tuple(found)
