"""Autocast as a call found it, entered again for its recompute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from momentumnet.recompute.surroundings.generators import AS_IT_IS


class Autocast:
    """Autocast as it stood, on the CPU and on the device where the call computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cache, self._kinds = self._now()

    def _now(self) -> tuple[bool, list[tuple[str, bool, torch.dtype]]]:
        kinds = ["cpu"] if self._device.type in ("cpu", "meta") else ["cpu", self._device.type]
        states = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
        return torch.is_autocast_cache_enabled(), states

    def replayed(self) -> AbstractContextManager[object]:
        """Context of a recompute."""
        return AS_IT_IS if self._now() == (self._cache, self._kinds) else self._replayed()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Context in which nobody has entered autocast: weights that `replayed` casts go where it ends."""
        depth = torch.autocast_increment_nesting() - 1
        for _ in range(depth + 1):
            torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        for kind, _, _ in self._kinds:
            torch.set_autocast_enabled(kind, False)
        try:
            yield
        finally:
            for kind, enabled, _ in self._kinds:
                torch.set_autocast_enabled(kind, enabled)
            for _ in range(depth):
                torch.autocast_increment_nesting()

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        if len(self._kinds) == 1:
            with self._one(*self._kinds[0]):
                yield
        else:
            with self._one(*self._kinds[0]), self._one(*self._kinds[1]):
                yield

    def _one(self, kind: str, enabled: bool, dtype: torch.dtype) -> torch.autocast:
        return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self._cache)
