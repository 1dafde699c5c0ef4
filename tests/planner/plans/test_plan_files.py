"""Plan files that somebody has edited, cut off or made up are refused, and it is said what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import momentumnet as mn
from momentumnet.planner.plans.training_plan import TrainingPlan
from tests.planner.wide import chain, rows

Plain = dict[str, Any]


@pytest.fixture(scope="module")
def plan() -> TrainingPlan:
    return mn.plan(chain(), rows(), budget="least", gamma=1 / 8)


@pytest.fixture
def saved(plan: TrainingPlan, tmp_path: Path) -> tuple[Path, Plain]:
    path = tmp_path / "plan.json"
    plan.save(path)
    return path, json.loads(path.read_text())


def changed(place: str, value: Any) -> Callable[[Plain], None]:
    """Sets a value; ``place`` is its keys, with dots between."""

    def change(found: Any) -> None:
        *keys, last = (int(key) if key.isdigit() else key for key in place.split("."))
        for key in keys:
            found = found[key]
        found[last] = value

    return change


def without(place: str) -> Callable[[Plain], None]:
    def change(found: Any) -> None:
        *keys, last = (int(key) if key.isdigit() else key for key in place.split("."))
        for key in keys:
            found = found[key]
        del found[last]

    return change


def first_two_swapped(found: Plain) -> None:
    found["units"][:2] = found["units"][1::-1]


EDITED: dict[str, tuple[Callable[[Plain], None], str]] = {
    "an unknown way": (
        changed("units.1.way", "recomputed"),
        r"units\[1\]\.way has to be one of 'stored', .*'recomputed'",
    ),
    "a way of another type": (changed("units.1.way", None), r"plan\.units\[1\]\.way has to be text, and is None"),
    "stored in the middle": (changed("units.1.way", "stored"), r"the blocks of stream .* come by .* in turn"),
    "two ways in a stream": (changed("units.0.way", "reversible"), r"come by 'reversible', 'checkpointed', .* in turn"),
    "a block of no stream": (changed("units.0.stream", None), "has other blocks than its units are"),
    "blocks in another order": (first_two_swapped, "has other blocks than its units are"),
    "a block less": (without("streams.0.blocks.0"), "has 5 blocks and 6 arguments"),
    "no names": (changed("units.0.names", []), r"units\[0\]\.names is empty"),
    "a name for names": (changed("units.0.names", "blocks.0"), r"plan\.units\[0\]\.names has to be a list"),
    "no units": (changed("units", []), "there are no units"),
    "a value less": (without("units.2.held"), r"plan\.units\[2\] has no 'held'"),
    "a value more": (changed("units.2.holds", 1), r"plan\.units\[2\] has 'holds', which this version does not know"),
    "negative bytes": (changed("peak", -1), r"plan\.peak has to be a whole number, 0 or more, and is -1"),
    "bytes as text": (changed("budget", "4GiB"), r"plan\.budget has to be a whole number, 0 or more or null"),
    "half a byte": (changed("stored_peak", 1.5), r"plan\.stored_peak has to be a whole number"),
    "no number": (changed("seconds", float("nan")), r"plan\.seconds has to be a number, 0 or more, and is nan"),
    "no time": (changed("stored_seconds", 0.0), "a step takes more than 0 seconds"),
    "true for a number": (changed("elements", True), r"plan\.elements has to be a whole number"),
    "no fraction": (changed("gamma", "1/0"), r"plan\.gamma has to be a fraction such as '1/8', and is '1/0'"),
    "a number for a fraction": (changed("gamma", 0.125), r"plan\.gamma has to be a fraction"),
    "too large a gamma": (changed("gamma", "9/8"), r"gamma must be in \[0, 1\]"),
    "streams at gamma 0": (changed("gamma", "0"), "gamma is 0, at which no stream moves"),
    "an unknown arithmetic": (changed("arithmetic", "fuzzy"), "arithmetic has to be one of 'exact', 'float'"),
    "unknown gradients": (changed("gradients", "gone"), "gradients has to be one of 'anew', 'present', and is 'gone'"),
    "an unknown phase": (changed("moments.0.phase", "sideways"), "the phase of a moment has to be one of 'forward'"),
    "a pair that is none": (changed("containers", [["blocks"]]), r"plan\.containers\[0\] has to be a list of 2 values"),
    "a list for an object": (changed("streams.0", ["blocks"]), r"plan\.streams\[0\] has to be an object"),
}


@pytest.mark.parametrize("name", EDITED)
def test_what_is_wrong_is_said(name: str, saved: tuple[Path, Plain]) -> None:
    path, found = saved
    change, reason = EDITED[name]
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(mn.ConversionError, match=rf"plan\.json holds a plan .*{reason}.*plan again"):
        mn.TrainingPlan.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off(share: float, saved: tuple[Path, Plain]) -> None:
    path, _ = saved
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(mn.ConversionError, match=r"plan\.json holds no plan that TrainingPlan\.save has written"):
        mn.TrainingPlan.load(path)


def test_modules_that_streams_name_have_to_be_there(plan: TrainingPlan) -> None:
    units = tuple(replace(unit, names=("elsewhere",)) for unit in plan.units[:1]) + plan.units[1:]
    stream = replace(plan.streams[0], blocks=("elsewhere", *plan.streams[0].blocks[1:]))
    with pytest.raises(mn.ConversionError, match="Chain has no module 'elsewhere'; plan again"):
        mn.convert(chain(), plan=replace(plan, units=units, streams=(stream,)))
    with pytest.raises(mn.ConversionError, match="has no module 'nowhere'"):
        mn.convert(chain(), plan=replace(plan, containers=(("nowhere", 6),)))


def test_a_plan_that_a_program_has_made_over_is_looked_at_too(plan: TrainingPlan) -> None:
    units = (replace(plan.units[0], way="stored"), *plan.units[1:])
    with pytest.raises(mn.ConversionError, match=r"the plan cannot be followed: the blocks of stream .* in turn"):
        mn.convert(chain(), plan=replace(plan, units=units))
    with pytest.raises(mn.ConversionError, match=r"units\[0\]\.way has to be one of"):
        mn.convert(chain(), plan=replace(plan, units=(replace(plan.units[0], way="?"), *plan.units[1:])))


def test_parts_that_are_recomputed_together_follow_one_another() -> None:
    plan = mn.plan(chain(), rows(), budget="least", gamma=0)
    apart = replace(plan, units=tuple(replace(u, way="checkpointed", group=at % 2) for at, u in enumerate(plan.units)))
    reversible = (replace(plan.units[0], way="reversible"), *plan.units[1:])
    with pytest.raises(mn.ConversionError, match="is reversible, and no stream's block"):
        mn.convert(chain(), plan=replace(plan, units=reversible))
    with pytest.raises(mn.ConversionError, match="as group 0, and do not follow one another"):
        mn.convert(chain(), plan=apart)
