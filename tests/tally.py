"""A list for tests that count calls, or are to see another one in a recompute: nobody puts back what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Tally(Generic[Entry]):
    """An object that has its entries in a field, and so is no container that a recompute leaves as it was."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)

    def pop(self) -> Entry:
        return self._entries.pop()

    def clear(self) -> None:
        self._entries.clear()

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __setitem__(self, number: int, entry: Entry) -> None:
        self._entries[number] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)
