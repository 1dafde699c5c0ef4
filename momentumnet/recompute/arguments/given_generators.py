"""Random generators that a call is given: a recompute draws what its forward drew, and leaves them as it finds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from momentumnet.recompute.surroundings.generators import AS_IT_IS
from momentumnet.recompute.values.left_values import HeldArray, HeldGenerator, held_beside_tensors


class GivenGenerators:
    """To be made before the call's first run.

    Args:
        generators: torch's, Python's or NumPy's; one may stand there several times.
    """

    def __init__(self, generators: Iterable[Any]) -> None:
        unique = {id(generator): generator for generator in generators}
        self._held = _held(unique.values())

    def forget_unused(self) -> None:
        """The first run has ended: those that it has not drawn from are not kept."""
        if self._held:
            self._held = [generator for generator in self._held if generator.is_changed]

    def replayed(self) -> AbstractContextManager[None]:
        """Context of another run: it finds them as the first one did, and they are afterwards as they were before."""
        return self._put_back() if self._held else AS_IT_IS

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        outside = _held(generator.held for generator in self._held)
        try:
            for generator in self._held:
                generator.put_back()
            yield
        finally:
            for generator in outside:
                generator.put_back()


def _held(generators: Iterable[Any]) -> list[HeldArray | HeldGenerator]:
    return [held for generator in generators if (held := held_beside_tensors(generator)) is not None]


NO_GENERATORS = GivenGenerators(())
