"""Storages that are held at a moment of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from momentumnet.planner.profiles.unit import Key


@dataclass
class Held:
    """Storages that are held, each counted once."""

    sizes: dict[Key, int]
    counts: Counter[Key] = field(default_factory=Counter)
    total: int = 0

    def add(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if not self.counts[key]:
                self.total += self.sizes[key]
            self.counts[key] += 1

    def remove(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.counts[key] -= 1
            if not self.counts[key]:
                self.total -= self.sizes[key]

    def missing(self, keys: Iterable[Key]) -> int:
        """Bytes of those that are not held."""
        return sum(self.sizes[key] for key in keys if not self.counts[key])
