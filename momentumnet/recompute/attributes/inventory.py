"""What the attributes of a block's modules are: settings, containers, tensors.

It is looked for in a block's first call, and again where an attribute has come or gone since, or is of another class.
"""

from __future__ import annotations

import enum
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.compiled import python_tables
from momentumnet.arithmetic.compiled.python_tables import Entries
from momentumnet.recompute.attributes.left_containers import Place, is_looked_at
from momentumnet.recompute.attributes.standing import Standing
from momentumnet.recompute.values.left_values import Look
from momentumnet.recompute.values.objects import OF_MODULE

# Classes whose objects are settings on an attribute, and in a list there.
NUMBERS = frozenset({bool, int, float, complex, str, type(None)})


class Places:
    """Where some values stand among the entries, and on which modules, under which names."""

    def __init__(self, found: Sequence[tuple[int, Place]]) -> None:
        self._found = found
        self.places = [place for _, place in found]
        indices = [index for index, _ in found]
        # Of fewer than two it makes no tuple.
        together: Callable[[Entries], Entries] | None = operator.itemgetter(*indices) if len(indices) > 1 else None
        self._take = together or (lambda entries: tuple(entries[index] for index in indices))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places) and self._found == other._found

    __hash__ = None  # type: ignore[assignment]

    def values(self, standing: Standing) -> Entries:
        """Those that stand there."""
        return self._take(standing.entries)


class Inventory(NamedTuple):
    """What the entries of a `Standing` are.

    Attributes:
        sizes: of its tables.
        kinds: names, and classes of values.
        single: settings by their class.
        several: those that are settings if all in them is.
        containers: where containers, and what else may be written to, stand.
        has_tensors: whether a tensor is an attribute.
    """

    sizes: list[int]
    kinds: Entries
    single: Places
    several: Places
    containers: list[Place]
    has_tensors: bool


# By block, the last one first: a recompute may find another one than the forward, in turns (tables of buffers are of a
# class of their own there).
_KNOWN: weakref.WeakKeyDictionary[nn.Module, list[Inventory]] = weakref.WeakKeyDictionary()
_MOST_KNOWN = 4


def inventory_of(block: nn.Module, standing: Standing) -> tuple[Inventory, Look]:
    """What stands on the modules of ``block``, and how its containers are looked at."""
    known = _KNOWN.get(block, [])
    found = next((inventory for inventory in known if _fits(inventory, standing)), None)
    if found is None:
        found = _alike_shared(_inventory(standing), known)
    elif found is known[0]:
        return found, Look.LATER
    _KNOWN[block] = [found, *(inventory for inventory in known if inventory is not found)][:_MOST_KNOWN]
    is_new = not known or not set(found.containers) <= set(known[0].containers)
    return found, Look.FIRST if is_new else Look.LATER


def _fits(inventory: Inventory, standing: Standing) -> bool:
    return inventory.sizes == standing.sizes and python_tables.are_of(standing.entries, inventory.kinds)


def _alike_shared(inventory: Inventory, known: Sequence[Inventory]) -> Inventory:
    """It, with the settings of another one if they stand in the same places: they are compared by these then."""
    for other in known:
        if (inventory.sizes, inventory.single, inventory.several) == (other.sizes, other.single, other.several):
            return inventory._replace(single=other.single, several=other.several)
    return inventory


def _inventory(standing: Standing) -> Inventory:
    kinds = python_tables.kinds_of(standing.entries)
    single: list[tuple[int, Place]] = []
    several: list[tuple[int, Place]] = []
    containers: list[Place] = []
    # Attributes of modules; parameters and layers, and what they have, stand behind them.
    places = [(number, name) for number, table in enumerate(standing.attributes) for name in table]
    for index, (place, kind) in enumerate(zip(places, kinds[1::2], strict=False)):
        is_single = kind in NUMBERS or issubclass(kind, (enum.Enum, torch.dtype))
        if is_single or kind is list or kind is tuple:
            (single if is_single else several).append((2 * index + 1, place))
        if place[1] not in OF_MODULE and is_looked_at(kind):
            containers.append(place)
    has_tensors = Tensor in kinds[1 : 2 * len(places) : 2]
    return Inventory(standing.sizes, kinds, Places(single), Places(several), containers, has_tensors)
