"""Which modules of a call train, and which are in eval mode: a recompute goes by the modes of its forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from momentumnet.recompute.surroundings.generators import AS_IT_IS


class Modes:
    """The modes of modules as they stand.

    Args:
        modules: a block and those inside of it.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._training = self._now()

    def _now(self) -> list[bool]:
        return [module.training for module in self._modules]

    def replayed(self) -> AbstractContextManager[None]:
        """Context that runs with these, then puts those back that were there: a `model.eval()` before backward."""
        now = self._now()
        return AS_IT_IS if now == self._training else self._replayed(now)

    @contextmanager
    def _replayed(self, outside: Sequence[bool]) -> Iterator[None]:
        try:
            self._set(self._training)
            yield
        finally:
            self._set(outside)

    def _set(self, modes: Sequence[bool]) -> None:
        for module, training in zip(self._modules, modes, strict=True):
            if module.training != training:
                module.training = training
