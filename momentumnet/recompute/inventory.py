"""What the attributes of a block's modules are: settings, containers, tensors.

It is looked for in a block's first call, and again where an attribute has come or gone since, or is of another class.
"""

from __future__ import annotations

import enum
import weakref
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from momentumnet.recompute.left_containers import is_looked_at
from momentumnet.recompute.left_values import Look
from momentumnet.recompute.objects import OF_MODULE
from momentumnet.recompute.standing import Standing

# Classes whose objects are settings on an attribute, and in a list there.
NUMBERS = frozenset({bool, int, float, complex, str, type(None)})

Place = tuple[int, str]


class Inventory(NamedTuple):
    """What the entries of a `Standing` are.

    Attributes:
        sizes: of its tables.
        names: of its entries.
        kinds: the classes of their values.
        single: which entries are settings by their class.
        several: which are if all in them is.
        settings: where these and those stand: number of the module, and name.
        containers: where containers, and what else may be written to, stand.
        has_tensors: whether a tensor is an attribute.
    """

    sizes: list[int]
    names: list[str]
    kinds: list[type]
    single: list[bool]
    several: list[bool]
    settings: list[Place]
    containers: list[Place]
    has_tensors: bool


_KNOWN: weakref.WeakKeyDictionary[nn.Module, Inventory] = weakref.WeakKeyDictionary()


def inventory_of(block: nn.Module, standing: Standing) -> tuple[Inventory, Look]:
    """What stands on the modules of ``block``, and how its containers are looked at."""
    kinds, known = standing.kinds(), _KNOWN.get(block)
    if known is not None and known.kinds == kinds and known.names == standing.names and known.sizes == standing.sizes:
        return known, Look.LATER
    found = _KNOWN[block] = _inventory(standing, kinds)
    is_new = known is None or not set(found.containers) <= set(known.containers)
    return found, Look.FIRST if is_new else Look.LATER


def _inventory(standing: Standing, kinds: list[type]) -> Inventory:
    places = [(number, name) for number, table in enumerate(standing.attributes) for name in table]
    own = kinds[: len(places)]  # attributes of modules; parameters and layers, and what they have, stand behind them
    single = [kind in NUMBERS or issubclass(kind, (enum.Enum, torch.dtype)) for kind in own]
    several = [kind is list or kind is tuple for kind in own]
    containers = [
        place for place, kind in zip(places, own, strict=True) if place[1] not in OF_MODULE and is_looked_at(kind)
    ]
    settings = [*compress(places, single), *compress(places, several)]
    return Inventory(standing.sizes, standing.names, kinds, single, several, settings, containers, Tensor in own)
