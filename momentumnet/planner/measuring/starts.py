"""What momentum streams begin with: held while their forward runs, so that a pass can be played again from there."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from momentumnet.planner.profiles.stream_profile import StreamProfile
from momentumnet.planner.profiles.unit import Key, Unit


def with_starts(
    streams: Sequence[StreamProfile],
    units: Sequence[Unit],
    glue: Set[Key],
    sizes: dict[Key, int],
    stand_ins: dict[Key, Key],
) -> tuple[StreamProfile, ...]:
    """The streams, and what each begins with: the argument of its first block, which the state has a copy of.

    Where no unit in front keeps that, nor code outside of all units (``glue``), its number is the copy's, and it gets
    one of its own, by ``stand_ins`` for who has a name for it, too.
    """
    found = list(streams)
    for index, unit in enumerate(units):
        place = unit.stream
        if place is None or not found[place].gamma or found[place].word is None:
            continue
        if any(before.stream == place for before in units[:index]):
            continue
        size = found[place].position
        start = next((key for key in unit.entry - unit.beside if sizes[key] in (0, size)), None)
        if start is None or not sizes[start]:
            continue  # the caller holds it
        front = units[index - 1].saved if index else frozenset()
        if start not in front and start not in glue:
            own = min(sizes) - 1
            stand_ins[start], start = own, own
            sizes[start] = size
        found[place] = replace(found[place], start=frozenset({start}))
    return tuple(found)
