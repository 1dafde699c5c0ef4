"""What stands on modules at one moment: attributes, parameters and layers; and what has changed there since.

Looked at all together: this happens for every call of every block, and nearly always nothing has changed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, pairwise, repeat

import torch
from torch import nn

from momentumnet.arithmetic.compiled import python_tables
from momentumnet.arithmetic.compiled.python_tables import Table

_PARAMETERS, _LAYERS = operator.itemgetter("_parameters"), operator.itemgetter("_modules")


def without_scripts(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those whose attributes and parameters can be looked at: a script keeps them to itself."""
    return [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]


class Standing:
    """Attributes, parameters and layers of modules, as they stand there; `recompute.buffers.buffers` has the buffers.

    So do attributes of parameters that have any by then (counters of libraries that hook layers, as opacus does).

    Attributes:
        attributes: those of the modules, as they are at any time.
        sizes: how many entries each table has: attributes of the modules and of parameters, parameters, layers.
        entries: of all tables, in this order (`python_tables.entries_of`).
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.attributes: list[Table] = list(map(vars, modules))
        of_modules: list[Table] = list(map(_PARAMETERS, self.attributes))
        parameters = list(chain.from_iterable(map(dict.values, of_modules)))
        are_plain = map(operator.is_, map(type, parameters), repeat(nn.Parameter))
        of_parameters: list[Table] = list(filter(None, map(vars, compress(parameters, are_plain))))
        self._first_of_layers = len(self.attributes) + len(of_parameters)
        layers: Iterator[Table] = map(_LAYERS, self.attributes)
        self._tables = [*self.attributes, *of_parameters, *of_modules, *layers]
        self.sizes = list(map(len, self._tables))
        self.entries = python_tables.entries_of(self._tables)

    def changes(self) -> list[tuple[Table, Table, bool]]:
        """Each table that is another one by now, what it was, and whether it holds attributes."""
        if list(map(len, self._tables)) == self.sizes and python_tables.hold(self._tables, self.entries):
            return []
        names, values = self.entries[::2], self.entries[1::2]
        copies = [
            dict(zip(names[start:end], values[start:end], strict=True))
            for start, end in pairwise(accumulate(self.sizes, initial=0))
        ]
        return [
            (table, copy, number < self._first_of_layers)
            for number, (table, copy) in enumerate(zip(self._tables, copies, strict=True))
            if not _is_as(table, copy)
        ]


def _is_as(table: Table, before: Table) -> bool:
    """Whether they are the same objects under the same names, in the same order."""
    same_names = len(table) == len(before) and all(map(operator.eq, table, before))
    return same_names and all(map(operator.is_, table.values(), before.values()))
