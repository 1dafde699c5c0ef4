"""A measured step at a gamma: where its streams move by momentum, and what units and glue keep of its storages then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from momentumnet.planner.names import beside_glue
from momentumnet.planner.profile import Key, Profile, Unit
from momentumnet.planner.starts import beside_starts, with_starts
from momentumnet.planner.stream_profile import StreamProfile


def at_gamma(gamma: Fraction, step: Profile, glue: Mapping[Key, int], streams: Sequence[StreamProfile]) -> Profile:
    """The step with its streams at this gamma, and its storages where they are kept: by units, and by glue."""
    sizes = dict(step.sizes)
    stand_ins: dict[Key, Key] = {}
    units = _as_streams(step.units, sizes, stand_ins) if gamma else step.units
    parts, parted = _parted(units, dict(glue))
    begun = with_starts(streams, step.units, sizes, stand_ins)
    named = beside_glue(beside_starts(step.named, stand_ins, step.units, begun), parted)
    return replace(step, units=tuple(parts), glue=parted, sizes=sizes, streams=begun, named=named)


def _as_streams(units: Sequence[Unit], sizes: dict[Key, int], stand_ins: dict[Key, Key]) -> list[Unit]:
    """The units, where the blocks of streams move by momentum; these fill no caches, whatever they keep.

    ``stand_ins`` get the storages that stand in the place of others.
    """
    found = _with_own_inputs(units, sizes, stand_ins)
    return [unit if unit.stream is None else replace(unit, filled=frozenset()) for unit in found]


def _with_own_inputs(units: Sequence[Unit], sizes: dict[Key, int], stand_ins: dict[Key, Key]) -> list[Unit]:
    """The units, where a momentum stream hands its blocks, and whoever comes behind it, a tensor of its own.

    In the trace a block's output is the input of the next one; in a momentum stream that is x after the step. What the
    model was given is no bytes of the step, but the first block takes it from the state. What more than two units share
    (the angles of rotary positions) is no stream.
    """
    found: list[Unit] = []
    uses = Counter(key for unit in units for key in unit.entry | unit.saved)
    for index, unit in enumerate(units):
        streams = {unit.stream, units[index - 1].stream if index else None} - {None}
        given = {key for key in unit.entry if not sizes[key]} if unit.stream is not None else set()
        if index and units[index - 1].stream == unit.stream:
            given = set()
        handed = unit.entry & units[index - 1].saved if index and streams else frozenset()
        shared = {key for key in handed if uses[key] <= 2} | given
        own = {key: -1 - len(units) - len(sizes) - number for number, key in enumerate(shared)}
        sizes.update({new: sizes[key] or unit.cost.output_bytes for key, new in own.items()})
        stand_ins.update(own)
        entry, saved = (frozenset(own.get(key, key) for key in keys) for keys in (unit.entry, unit.saved))
        found.append(replace(unit, entry=entry, saved=saved))
    return found


def _parted(units: Sequence[Unit], glue: dict[Key, int]) -> tuple[list[Unit], tuple[tuple[int, frozenset[Key]], ...]]:
    """The units without what glue keeps anyway, and glue with what units far from one another need.

    What a unit saves, too, is there until its backward: glue keeps it from that unit on.
    """
    places: dict[Key, list[int]] = {}
    savers: dict[Key, int] = {}
    for index, unit in enumerate(units):
        for key in unit.saved | unit.entry:
            places.setdefault(key, []).append(index)
        for key in unit.saved:
            savers.setdefault(key, index)
    for key, used in places.items():
        if key in glue or used[-1] - used[0] > 1:
            glue[key] = min(glue.get(key, len(units)), savers.get(key, used[0] + 1))
    by_place: dict[int, set[Key]] = {}
    for key, place in glue.items():
        by_place.setdefault(place, set()).add(key)
    parted = [replace(unit, saved=unit.saved - glue.keys(), entry=unit.entry - glue.keys()) for unit in units]
    return parted, tuple((place, frozenset(keys)) for place, keys in sorted(by_place.items()))
