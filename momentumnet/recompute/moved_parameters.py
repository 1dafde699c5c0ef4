"""Parameters that a call moves itself: a teacher that is an average, weights that are normalised or set from data.

A recompute begins with their values before the call, as far as they are known, and leaves them where the call has left
them: an average is not taken twice.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from momentumnet.recompute.arguments import version
from momentumnet.recompute.generators import AS_IT_IS, bytes_on_host
from momentumnet.recompute.looks import has_lost_its_memory

# By block, the parameters that its calls move: their values are copied before the next one.
_MOVED: weakref.WeakKeyDictionary[nn.Module, set[tuple[int, str]]] = weakref.WeakKeyDictionary()
# What FSDP and DeepSpeed, which give parameters other memory while modules run, have on those of theirs. (FSDP2 takes
# all memory away from those that it has put in place.)
_MANAGED = ("_fsdp_flattened", "ds_id")
_FEW = 1024  # elements of a parameter without a gradient that are copied without a reason


class _Seen(NamedTuple):
    """A parameter when the call began, and its value as far as it stays known: a copy, or where it lay."""

    table: dict[str, Any]
    key: tuple[int, str]
    parameter: nn.Parameter
    counter: int
    pointer: int
    value: Tensor | None
    is_copy: bool

    @property
    def is_written(self) -> bool:
        """Whether it has been written in place; of a copied one on the CPU also where the counter does not tell."""
        if version(self.parameter) != self.counter:
            return True
        if not self.is_copy or self.value is None or not self.parameter.is_cpu or not self.parameter.is_contiguous():
            return False
        return bytes_on_host(self.parameter) != bytes_on_host(self.value)


class MovedParameters:
    """What a call moves of its modules' parameters; to be made before its first run.

    The old value is known of one that an earlier call of the block has moved, and of one that is small or assigned
    (``p.data = ...``), in the block's first call, or if it takes no gradient.

    Args:
        modules: the block, and all in it.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._block = modules[0]
        known = _MOVED.get(self._block)
        self._seen = [
            _seen(module._parameters, (place, name), parameter, known=known)
            for place, module in enumerate(modules)
            for name, parameter in module._parameters.items()
            if type(parameter) is nn.Parameter and parameter.layout == torch.strided
        ]
        self._moved: list[tuple[_Seen, Tensor | None]] = []
        _MOVED.setdefault(self._block, set())

    def forget_unmoved(self) -> list[nn.Parameter]:
        """The first run has ended; returns those that it has moved."""
        for seen in self._seen:
            parameter, is_written = seen.parameter, seen.is_written
            if not is_written and parameter.data_ptr() == seen.pointer:
                continue
            if not seen.pointer or has_lost_its_memory(parameter) or any(hasattr(parameter, name) for name in _MANAGED):
                continue
            _MOVED[self._block].add(seen.key)
            self._moved.append((seen, seen.value if seen.is_copy or not is_written else None))
        self._seen = []
        return [seen.parameter for seen, _ in self._moved]

    @property
    def can_be_put_back(self) -> bool:
        """Whether all values before the first run are known."""
        return all(value is not None for _, value in self._moved)

    def put_back(self) -> None:
        """As if the first run had not been."""
        for seen, value in self._moved:
            if value is not None:
                seen.parameter.data = value.clone()

    def replayed(self) -> AbstractContextManager[None]:
        """Context of a recompute: parameters begin where the first run found them, and end where they stood."""
        return self._replayed() if self._moved else AS_IT_IS

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        # Others in their place: what the recompute saves and writes is no affair of theirs, nor of their counters'.
        others: dict[int, nn.Parameter] = {}
        places = [(seen.table, seen.key[1], seen.table.get(seen.key[1])) for seen, _ in self._moved]
        try:
            for seen, value in self._moved:
                own = seen.parameter
                other = nn.Parameter(
                    (own.detach() if value is None else value).clone(), requires_grad=own.requires_grad
                )
                seen.table[seen.key[1]] = others.setdefault(id(own), other)
            yield
        finally:
            for table, name, parameter in places:
                table[name] = parameter


def _seen(
    table: dict[str, Any], key: tuple[int, str], parameter: nn.Parameter, known: set[tuple[int, str]] | None
) -> _Seen:
    looked_at = known is None or not parameter.requires_grad
    is_copy = (known is not None and key in known) or (looked_at and parameter.numel() <= _FEW)
    value = parameter.detach().clone() if is_copy else parameter.detach() if looked_at else None
    return _Seen(table, key, parameter, version(parameter), parameter.data_ptr(), value, is_copy)
