"""Numbers and names on attributes of modules: a recompute goes by those that its forward has found.

A domain, the adapter that is active, a width, a flag. They are set for a forward, and set anew for the next one, whose
backward may come before that of this one, or with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from momentumnet.arithmetic.compiled import python_tables
from momentumnet.recompute.attributes.inventory import NUMBERS, Inventory
from momentumnet.recompute.attributes.standing import Standing
from momentumnet.recompute.values.entries import MOST_ENTRIES

_NO_SETTING = object()


class Settings:
    """Numbers, strings, lists and tuples of these, members of enumerations and types, on attributes as a call begins.

    Args:
        inventory: which attributes are.
        standing: the attributes. Of what is no setting, nothing is kept alive.
    """

    def __init__(self, inventory: Inventory, standing: Standing) -> None:
        self._inventory = inventory
        self._single = inventory.single.values(standing)
        several = inventory.several.values(standing)
        self._several = tuple(value if _is_setting(value) else _NO_SETTING for value in several)

    def changes(self, inventory: Inventory, standing: Standing) -> Iterator[tuple[int, str, Any]]:
        """Where another one stands by now: number of the module, name, and what the call has begun with."""
        before = self._inventory
        if inventory.single is before.single and inventory.several is before.several and self._stand(standing):
            return
        for places, values in ((self._inventory.single, self._single), (self._inventory.several, self._several)):
            for (number, name), value in zip(places.places, values, strict=True):
                if value is not _NO_SETTING and standing.attributes[number].get(name, _NO_SETTING) is not value:
                    yield number, name, value

    def _stand(self, standing: Standing) -> bool:
        """Whether they do, where the inventory has them in the same places."""
        if not python_tables.are_same(self._inventory.single.values(standing), self._single):
            return False
        several = self._inventory.several.values(standing)
        return all(now is value or value is _NO_SETTING for now, value in zip(several, self._several, strict=True))


def _is_setting(value: Sequence[Any]) -> bool:
    """A longer one is a record of all steps, and each call would look at every entry."""
    return len(value) <= MOST_ENTRIES and NUMBERS.issuperset(map(type, value))
