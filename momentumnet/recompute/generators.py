"""The random generators as a call found them, put back for the time of its recompute.

Looking has to be cheap, as most blocks draw nothing: of a CUDA generator two numbers are compared, its seed and its
offset; of the CPU's the bytes of its state.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Context of a replay that has nothing to put in place.
AS_IT_IS = nullcontext()
# The kinds of blocks that have seeded a generator: one of them may leave it as it was, as another has left it so.
_SEEDING: weakref.WeakSet[type] = weakref.WeakSet()


class Generators:
    """The states of the CPU's generator and of the device's, where the stream lives.

    While CUDA records a graph, its generator can neither be looked at nor be put back; a block that draws then computes
    something else in its recompute, which its checksum tells.

    Args:
        device: where the stream lives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type not in ("cpu", "meta") else None
        self.cpu: Tensor | None = torch.default_generator.get_state()
        self._seed = torch.default_generator.initial_seed()
        self.accelerator: Tensor | tuple[int, int] | None = None
        if self._device is not None:
            self.accelerator = _state_of(self._device)

    def forget_unused(self, kind: type) -> None:
        """Drop each state that has not moved since: nothing was drawn from that generator.

        Args:
            kind: of the block. Those of a kind that seeds keep them.
        """
        there = None if self._device is None else _state_of(self._device)
        if torch.default_generator.initial_seed() != self._seed or _seed_of(there) != _seed_of(self.accelerator):
            _SEEDING.add(kind)
        if kind in _SEEDING:
            return
        if self.cpu is not None and _same(self.cpu, torch.default_generator.get_state()):
            self.cpu = None
        if self._device is not None and _same(self.accelerator, there):
            self.accelerator = None

    @property
    def used(self) -> bool:
        return self.cpu is not None or self.accelerator is not None

    def set(self) -> None:
        """Put the generators back to these states."""
        if self.cpu is not None:
            torch.default_generator.set_state(self.cpu)
        if self._device is None or self.accelerator is None:
            return
        if isinstance(self.accelerator, Tensor):
            torch.get_device_module(self._device).set_rng_state(self.accelerator, self._device)
        else:
            generator = _cuda_generator(self._device)
            seed, offset = self.accelerator
            if generator.initial_seed() != seed:
                generator.manual_seed(seed)
            generator.set_offset(offset)

    def replayed(self) -> AbstractContextManager[None]:
        """Context that runs with these states, then puts the generators back where they were."""
        return self._replayed() if self.used else AS_IT_IS

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        outside = Generators(self._device or torch.device("cpu"))
        try:
            self.set()
            yield
        finally:
            outside.set()


def _state_of(device: torch.device) -> Tensor | tuple[int, int] | None:
    if device.type != "cuda":
        state: Tensor = torch.get_device_module(device).get_rng_state(device)
        return state
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return None
    generator = _cuda_generator(device)
    return generator.initial_seed(), generator.get_offset()


def _seed_of(state: Tensor | tuple[int, int] | None) -> int | None:
    """Of a CUDA generator; others keep theirs to themselves."""
    return state[0] if isinstance(state, tuple) else None


def _cuda_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()  # the generators are made with it
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def _same(before: Tensor | tuple[int, int] | None, after: Tensor | tuple[int, int] | None) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return bytes_on_host(before) == bytes_on_host(after)
    return before == after


def bytes_on_host(state: Tensor) -> bytes:
    """Those of a contiguous tensor in memory of the host, where the state of any generator lies: no device is asked."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
