"""Numbers and names on attributes of modules: a recompute goes by those that its forward has found.

A domain, the adapter that is active, a width, a flag. They are set for a forward, and set anew for the next one, whose
backward may come before that of this one, or with it.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import Any, NamedTuple

import torch
from torch import nn

from momentumnet.recompute.entries import MOST_ENTRIES

_NUMBERS = frozenset({bool, int, float, complex, str, type(None)})

Table = dict[str, Any]


class _Known(NamedTuple):
    """A block's attributes, and which of them are settings, as in its last call: that is asked in every call."""

    kinds: list[type]
    names: list[str]
    alone: list[bool]
    several: list[bool]
    places: list[tuple[int, str]]


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


class Settings:
    """Numbers, strings, lists and tuples of these, members of enumerations and types, on attributes as a call begins.

    Args:
        block: which is called.
        tables: copies of the attributes of its modules.
        values: all of them, in order.
        kinds: their classes.
    """

    def __init__(self, block: nn.Module, tables: Sequence[Table], values: list[Any], kinds: list[type]) -> None:
        names = _names(tables)
        known = _KNOWN.get(block)
        if known is None or known.kinds != kinds or known.names != names:
            known = _KNOWN[block] = _look(tables, kinds, names)
        self._known = known
        self._values = _settings(known, values)
        self._ids = list(map(id, values))  # of what is no setting, nothing is kept alive

    def changes(self, tables: Sequence[Table], values: list[Any]) -> Iterator[tuple[int, str, Any]]:
        """Where another one stands by now: number of the module, name, and what the call has begun with."""
        if self._ids == list(map(id, values)):
            return
        for (number, name), value in zip(self._known.places, self._values, strict=True):
            if value is not _NO_SETTING and tables[number].get(name, _NO_SETTING) is not value:
                yield number, name, value


_NO_SETTING = object()


def _look(tables: Sequence[Table], kinds: list[type], names: list[str]) -> _Known:
    alone = [kind in _NUMBERS or issubclass(kind, (enum.Enum, torch.dtype)) for kind in kinds]
    several = [kind is list or kind is tuple for kind in kinds]
    everywhere = [(number, name) for number, table in enumerate(tables) for name in table]
    return _Known(kinds, names, alone, several, [*compress(everywhere, alone), *compress(everywhere, several)])


def _names(tables: Sequence[Table]) -> list[str]:
    return list(chain.from_iterable(tables))


def _settings(known: _Known, values: list[Any]) -> list[Any]:
    """In the order of the places."""
    several = compress(values, known.several)
    return [*compress(values, known.alone), *[v if _is_setting(v) else _NO_SETTING for v in several]]


def _is_setting(value: Sequence[Any]) -> bool:
    """A longer one is a record of all steps, and each call would look at every entry."""
    return len(value) <= MOST_ENTRIES and _NUMBERS.issuperset(map(type, value))
