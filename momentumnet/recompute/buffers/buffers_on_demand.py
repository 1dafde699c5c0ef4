"""Buffers whose values are kept only once somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class _OnDemand(dict[str, "Tensor | None"]):
    """A table of buffers; in front of the first look at one, it asks to have their values kept.

    `as_they_are` looks without asking. A copy or pickle is a plain dict.
    """

    def __init__(self, table: dict[str, Tensor | None]) -> None:
        super().__init__(table)
        self.waiting: list[Callable[[], None]] = []

    def ask(self) -> None:
        waiting, self.waiting = self.waiting, []
        for keep in waiting:
            keep()

    def __getitem__(self, name: str) -> Tensor | None:
        self.ask()
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.ask()
        return super().get(name, default)

    def items(self) -> Any:
        self.ask()
        return super().items()

    def values(self) -> Any:
        self.ask()
        return super().values()

    def __iter__(self) -> Iterator[str]:
        # That there is one has `dict(table)` and `{**table}` go by `__getitem__`, too.
        return super().__iter__()

    def pop(self, *args: Any) -> Any:
        self.ask()
        return super().pop(*args)

    def popitem(self) -> Any:
        self.ask()
        return super().popitem()

    def setdefault(self, *args: Any) -> Any:
        self.ask()
        return super().setdefault(*args)

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def copy(self) -> dict[str, Tensor | None]:
        self.ask()
        return dict(super().items())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)


def as_they_are(owner: nn.Module) -> ItemsView[str, Tensor | None]:
    """The buffers and their names, for one who does not write to them: nobody is asked to keep them."""
    table = owner._buffers
    return dict.items(table) if type(table) is _OnDemand else table.items()


@contextmanager
def kept_on_demand(owners: Iterable[nn.Module], keep: Callable[[], None]) -> Iterator[None]:
    """Inside, ``keep`` is called in front of the first look at a buffer of one of the owners."""
    put: list[tuple[nn.Module, dict[str, Tensor | None]]] = []
    tables = []
    try:
        for owner in owners:
            table = owner._buffers
            if type(table) is not _OnDemand:  # else of a call around this one, or of another thread
                put.append((owner, table))
                table = owner.__dict__["_buffers"] = _OnDemand(table)
            tables.append(table)
            table.waiting.append(keep)
        yield
    finally:
        for table in tables:
            if keep in table.waiting:
                table.waiting.remove(keep)
        for owner, table in put:
            owner.__dict__["_buffers"] = table
