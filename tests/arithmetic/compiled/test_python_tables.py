"""What stands in tables of Python's, by the CPU library and by Python's own loops."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

from momentumnet.arithmetic.compiled import libraries, python_tables


class Odd:
    """Not to be compared by value: it may be a tensor on a GPU."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared by value")

    __hash__ = None  # type: ignore[assignment]


class OwnTable(OrderedDict[str, Any]):
    """As DeepSpeed's, which does something when it is asked for an entry."""

    def __getitem__(self, name: str) -> Any:
        raise AssertionError("asked for an entry")

    items = values = keys = __iter__ = __getitem__  # type: ignore[assignment]


@pytest.fixture(params=["native", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(python_tables, "_library", lambda: None)
    elif python_tables._library() is None:
        pytest.skip(f"no CPU library for this Python: {libraries.cpu().reason or sys.version}")
    return str(request.param)


def tables() -> list[dict[str, Any]]:
    return [{"a": 1000.5, "b": Odd()}, {}, {"c": [1, 2]}, OwnTable(d=None)]


@pytest.mark.usefixtures("way")
def test_entries_are_names_and_values_table_by_table() -> None:
    given = tables()
    entries = python_tables.entries_of(given)
    assert entries[::2] == ("a", "b", "c", "d")
    expected = (given[0]["a"], given[0]["b"], given[2]["c"], None)
    assert all(value is right for value, right in zip(entries[1::2], expected, strict=True))
    assert python_tables.entries_of([]) == python_tables.entries_of([{}]) == ()


CHANGES: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "another value": lambda found: found[0].update(a=2),
    "an equal one": lambda found: found[0].update(a=float("1000.5")),
    "an equal list": lambda found: found[2].update(c=[1, 2]),
    "another one that refuses to be compared": lambda found: found[0].update(b=Odd()),
    "one more": lambda found: found[3].__setitem__("e", 1),
    "one more in an empty table": lambda found: found[1].update(e=1),
    "one less": lambda found: found[0].pop("b"),
    "none left": lambda found: [table.clear() for table in found],
    "another name": lambda found: found[2].__setitem__("e", dict.pop(found[2], "c")),
    "another order": lambda found: found[0].__setitem__("a", found[0].pop("a")),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_seen(change: str) -> None:
    given = tables()
    entries = python_tables.entries_of(given)
    assert python_tables.hold(given, entries)
    CHANGES[change](given)
    assert not python_tables.hold(given, entries)
    assert not python_tables.are_same(python_tables.entries_of(given), entries)


@pytest.mark.usefixtures("way")
def test_kinds_go_by_names_and_classes_alone() -> None:
    kinds = python_tables.kinds_of(python_tables.entries_of(tables()))
    assert kinds == ("a", float, "b", Odd, "c", list, "d", type(None))
    assert python_tables.are_of(python_tables.entries_of(tables()), kinds)
    for name, changed in {"a": 1, "b": None, "c": (1, 2)}.items():
        given = tables()
        next(table for table in given if name in dict.keys(table))[name] = changed
        assert not python_tables.are_of(python_tables.entries_of(given), kinds), name
    longer = [*tables(), {"e": 1}]
    assert not python_tables.are_of(python_tables.entries_of(longer), kinds)
    assert not python_tables.are_of(python_tables.entries_of([]), kinds)
    # A class that stands there itself is no object of its own.
    assert not python_tables.are_of(python_tables.entries_of([{"a": float}]), ("a", float))


@pytest.mark.usefixtures("way")
def test_nothing_is_held_or_let_go() -> None:
    given = tables()
    watched = [given[0]["a"], given[0]["b"], given[2]["c"], type(given[0]["b"])]
    entries = python_tables.entries_of(given)
    kinds = python_tables.kinds_of(entries)
    gc.collect()
    before = list(map(sys.getrefcount, watched))
    for _ in range(100):
        python_tables.hold(given, entries)
        python_tables.are_of(entries, kinds)
        python_tables.are_same(entries, python_tables.entries_of(given))
    assert list(map(sys.getrefcount, watched)) == before
    del entries
    assert list(map(sys.getrefcount, watched)) == [before[0] - 1, before[1] - 1, before[2] - 1, before[3]]
