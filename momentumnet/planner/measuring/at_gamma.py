"""A measured step at a gamma: where its streams move by momentum, and what units and glue keep of its storages then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from momentumnet.planner.measuring.names import beside_glue
from momentumnet.planner.measuring.own_tensors import OwnTensors
from momentumnet.planner.measuring.starts import with_starts
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Key, Unit


def at_gamma(gamma: Fraction, step: Profile, glue: Mapping[Key, int], streams: Sequence[StreamProfile]) -> Profile:
    """The step with its streams at this gamma, and its storages where they are kept: by units, and by glue."""
    wholes = replace(step, streams=tuple(streams)).wholes
    if not gamma:
        parts, parted = _parted(step.units, dict(glue), wholes)
        named = beside_glue(step.named, parted)
        return replace(step, units=tuple(parts), glue=parted, streams=tuple(streams), named=named)
    own = OwnTensors(step, glue, streams)
    parts, parted = _parted(own.units, own.glue, wholes)
    begun = with_starts(streams, step.units, glue.keys(), own.sizes, own.stand_ins)
    stood_for = [frozenset(own.stand_ins.get(key, key) for key in keys) for keys in step.named]
    named = beside_glue(stood_for, parted)
    moved = replace(step, units=tuple(parts), glue=parted, sizes=own.sizes, outputs=own.outputs)
    return replace(moved, streams=begun, named=named)


def _parted(
    units: Sequence[Unit], glue: dict[Key, int], wholes: Mapping[int, int]
) -> tuple[list[Unit], tuple[tuple[int, frozenset[Key]], ...]]:
    """The units without what glue keeps anyway, and glue with what units far from one another need.

    What a unit saves, too, is there until its backward: glue keeps it from that unit on. Units that are chosen for as a
    whole (``wholes``, from the first to behind the last) are simulated together, and what they share is theirs.
    """
    places: dict[Key, list[int]] = {}
    savers: dict[Key, int] = {}
    for index, unit in enumerate(units):
        for key in unit.saved | unit.entry:
            places.setdefault(key, []).append(index)
        for key in unit.saved:
            savers.setdefault(key, index)
    for key, used in places.items():
        is_far = used[-1] - used[0] > 1
        if key in glue or (is_far and not any(start <= used[0] and used[-1] < stop for start, stop in wholes.items())):
            glue[key] = min(glue.get(key, len(units)), savers.get(key, used[0] + 1))
    by_place: dict[int, set[Key]] = {}
    for key, place in glue.items():
        by_place.setdefault(place, set()).add(key)
    parted = [replace(unit, saved=unit.saved - glue.keys(), entry=unit.entry - glue.keys()) for unit in units]
    return parted, tuple((place, frozenset(keys)) for place, keys in sorted(by_place.items()))
