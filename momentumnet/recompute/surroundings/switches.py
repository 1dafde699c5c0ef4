"""PyTorch's switches as a call found them: which kernels are taken, which type and which device are the default.

They are one for the whole process, and often set around a forward alone (``with sdpa_kernel(...): output = model(x)``).
A recompute that went by those of the backward would take other kernels, with other last bits and other saved tensors.
How exactly float32 is multiplied is none of them: it is told by two interfaces of PyTorch's, which cannot be mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from momentumnet.recompute.surroundings.generators import AS_IT_IS

_C: Any = torch._C
_CPU = torch.device("cpu")
_Switch = tuple[Callable[[], Any], Callable[[Any], Any]]


def _deterministic() -> tuple[bool, bool]:
    return _C._get_deterministic_algorithms(), _C._get_deterministic_algorithms_warn_only()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    _C._set_deterministic_algorithms(value[0], warn_only=value[1])


def _known() -> Iterator[_Switch]:
    """What asks for each switch, and what sets it; of those that this PyTorch has."""
    for kind in ("flash", "mem_efficient", "math", "cudnn", "overrideable", "fa3", "fa4"):
        yield getattr(_C, f"_get_{kind}_sdp_enabled", None), getattr(_C, f"_set_sdp_use_{kind}", None)  # type: ignore[misc]
    for name in ("sdp_priority_order", "cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "mkldnn_enabled"):
        yield getattr(_C, f"_get_{name}", None), getattr(_C, f"_set_{name}", None)  # type: ignore[misc]
    yield torch.get_default_dtype, torch.set_default_dtype
    yield _deterministic, _set_deterministic


_SWITCHES = [(ask, put) for ask, put in _known() if ask is not None and put is not None]
_ASK = [ask for ask, _ in _SWITCHES]


class Switches:
    """The switches as they stand."""

    __slots__ = ("_device", "_values")

    def __init__(self) -> None:
        self._values = [ask() for ask in _ASK]
        # One that is set is a mode of PyTorch's functions; to ask for it takes longer.
        self._device = torch.get_default_device() if _C._len_torch_function_stack() else _CPU

    def replayed(self) -> AbstractContextManager[None]:
        """Context that runs with these, then puts them back to where they were."""
        now = Switches()
        if now._values == self._values and now._device == self._device:
            return AS_IT_IS
        return self._replayed(now)

    @contextmanager
    def _replayed(self, outside: Switches) -> Iterator[None]:
        try:
            _turn(outside._values, self._values)
            with nullcontext() if outside._device == self._device else self._device:
                yield
        finally:
            _turn(self._values, outside._values)


def _turn(before: Sequence[Any], after: Sequence[Any]) -> None:
    """Set those that differ."""
    for (_, put), old, new in zip(_SWITCHES, before, after, strict=True):
        if old != new:
            put(new)
