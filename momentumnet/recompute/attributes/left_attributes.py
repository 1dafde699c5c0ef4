"""Attributes of modules that a call changes: a counter, statistics, an auxiliary loss, a layer in another one's place.

A recompute begins with what the call began with: the numbers, objects, tensors without a history, parameters and layers
that stood there. It leaves its own behind: a second count, or a tensor whose graph nobody goes through, which would
live until the next forward with all that the recompute has saved. So what stood there before it is put back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor, nn

from momentumnet.arithmetic.compiled.python_tables import Table
from momentumnet.recompute.attributes.inventory import NUMBERS, inventory_of
from momentumnet.recompute.attributes.left_containers import Containers
from momentumnet.recompute.attributes.settings import Settings
from momentumnet.recompute.attributes.standing import Standing
from momentumnet.recompute.values.buffer_values import COPIED_ANYWAY
from momentumnet.recompute.values.left_values import is_plain_tensor, is_written, stand_ins
from momentumnet.recompute.values.objects import parts

# By block, the plain tensors on attributes that its calls write to, as far as it has been seen.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[tuple[int, str]]] = weakref.WeakKeyDictionary()
# An object that reaches more than this is a part of the program around the network.
_MOST_PARTS = 1000


def left_by_a_call(module: nn.Module) -> list[str]:
    """The module's own attributes that hold a tensor with a history."""
    return [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.grad_fn is not None]


class _Plain(NamedTuple):
    """A plain tensor on an attribute, its counter, and a copy, or None."""

    place: int
    name: str
    tensor: Tensor
    counter: int
    value: Tensor | None

    @property
    def is_written(self) -> bool:
        """Whether it has been written to."""
        return is_written(self.tensor, self.counter, self.value)


class Attributes:
    """What a call changes of the attributes of its modules; to be made before its first run.

    Args:
        block: which is called.
        modules: those of the block, and it itself, that may change.
    """

    def __init__(self, block: nn.Module, modules: Sequence[nn.Module]) -> None:
        self._block, self._modules = block, modules
        self._is_first = block not in _WRITTEN
        self._written = _WRITTEN.setdefault(block, set())
        self._before: Standing | None = Standing(modules)
        inventory, look = inventory_of(block, self._before)
        self._plain = self._plain_tensors() if inventory.has_tensors else []
        self._changed: list[tuple[Table, Table, Sequence[str]]] = []
        self._containers = Containers(block, modules, inventory.containers, look)
        self._settings = Settings(inventory, self._before)

    def forget_unchanged(self) -> None:
        """The first run has ended: what it has put something else in the place of is kept, if no graph hangs on it."""
        self._is_first = False
        self._written.update((plain.place, plain.name) for plain in self._plain if plain.is_written)
        self._plain = [
            plain if (plain.place, plain.name) in self._written else plain._replace(value=None) for plain in self._plain
        ]
        self._containers.forget_unchanged(_holds_no_graph)
        for now, before, are_attributes in () if self._before is None else self._before.changes():
            if are_attributes:
                changed = {name: value for name, value in before.items() if now.get(name, before) is not value}
                seen = {name: value for name, value in changed.items() if _holds_no_graph(value)}
            elif _are_layers(now) and _are_layers(before):
                seen = before
            else:
                continue
            self._changed.append((now, seen, [name for name in now if name not in before]))
        self._before = None

    def put_back(self) -> None:
        """As if the first run had not been."""
        for table, seen, new in self._changed:
            for name in new:
                table.pop(name, None)
            table.update(seen)
        written = [(plain, plain.value) for plain in self._plain if plain.value is not None]
        # Tensors of their own: the recompute may save them for backward, and must not see them written to.
        clones = stand_ins([*((plain.tensor, value) for plain, value in written), *self._containers.written])
        for plain, _ in written:
            vars(self._modules[plain.place])[plain.name] = clones[id(plain.tensor)]
        self._containers.put_back(clones)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Context of a recompute: it sees what the first run saw, and all is and holds what it was before."""
        before = Standing(self._modules)
        inventory, look = inventory_of(self._block, before)
        plain = self._plain_tensors() if self._plain else []
        try:
            with self._containers.left_alone(inventory.containers, look):
                for number, name, value in self._settings.changes(inventory, before):
                    before.attributes[number][name] = value
                self.put_back()
                yield
        finally:
            for now, entries, _ in before.changes():
                _make_as(now, entries)
            for seen in plain:
                if seen.value is not None and seen.is_written:
                    seen.tensor.data.copy_(seen.value)  # through .data: graphs that saved it stay valid

    def _plain_tensors(self) -> list[_Plain]:
        """The plain tensors on attributes, with a copy where it may be needed.

        On the CPU that is so of small ones, which may be written to without a trace, and in the block's first call.
        """
        return [
            _Plain(place, name, value, value._version, value.clone() if keep else None)
            for place, module in enumerate(self._modules)
            for name, value in vars(module).items()
            if is_plain_tensor(value)
            for is_small in (value.numel() <= COPIED_ANYWAY and (value.is_cpu or self._is_first),)
            for keep in (is_small or (place, name) in self._written,)
        ]


def _holds_no_graph(value: Any) -> bool:
    """Whether it may be kept until backward: no tensor in it has a history, in which an earlier pass would live on.

    A state that is handed on in a tuple or an object, a function that is taken in turns, or nothing at all.
    """
    if type(value) in NUMBERS:
        return True
    found = list(islice(parts([value]), _MOST_PARTS))
    tensors = [part for part, contents in found if contents is None]
    return len(found) < _MOST_PARTS and all(tensor.grad_fn is None and not tensor.is_inference() for tensor in tensors)


def _are_layers(table: Table) -> bool:
    """Whether parameters or layers are no library's own, which knows when which one stands there (shards of FSDP)."""
    return all(value is None or type(value) is nn.Parameter or isinstance(value, nn.Module) for value in table.values())


def _make_as(table: Table, before: Table) -> None:
    for name in table.keys() - before.keys():
        del table[name]
    table.update(before)
