"""Numbers and names on attributes of modules: a recompute goes by those that its forward has found.

A domain, the adapter that is active, a width, a flag. They are set for a forward, and set anew for the next one, whose
backward may come before that of this one, or with it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

from momentumnet.recompute.entries import MOST_ENTRIES
from momentumnet.recompute.inventory import NUMBERS, Inventory
from momentumnet.recompute.standing import Standing

_NO_SETTING = object()


class Settings:
    """Numbers, strings, lists and tuples of these, members of enumerations and types, on attributes as a call begins.

    Args:
        inventory: which attributes are.
        values: all of them, in order.
    """

    def __init__(self, inventory: Inventory, values: list[Any]) -> None:
        self._inventory = inventory
        self._values = _settings(inventory, values)  # of what is no setting, nothing is kept alive

    def changes(self, inventory: Inventory, standing: Standing) -> Iterator[tuple[int, str, Any]]:
        """Where another one stands by now: number of the module, name, and what the call has begun with."""
        if inventory is self._inventory and all(map(operator.is_, _settings(inventory, standing.values), self._values)):
            return
        for (number, name), value in zip(self._inventory.settings, self._values, strict=True):
            if value is not _NO_SETTING and standing.attributes[number].get(name, _NO_SETTING) is not value:
                yield number, name, value


def _settings(inventory: Inventory, values: list[Any]) -> list[Any]:
    """In the order of the places."""
    several = compress(values, inventory.several)
    return [*compress(values, inventory.single), *[v if _is_setting(v) else _NO_SETTING for v in several]]


def _is_setting(value: Sequence[Any]) -> bool:
    """A longer one is a record of all steps, and each call would look at every entry."""
    return len(value) <= MOST_ENTRIES and NUMBERS.issuperset(map(type, value))
