"""The random generators as a call found them, put back for the time of its recompute.

Looking has to be cheap, as most blocks draw nothing: of a CUDA generator two numbers are compared, its seed and its
offset; of the CPU's the bytes of its state.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Context of a replay that has nothing to put in place.
AS_IT_IS = nullcontext()
# Where the CPU's generator alone is drawn from.
HOSTS = ("cpu", "meta")
# Bytes at either end of the CPU generator's state that tell it from others: seed, position, and words of each round.
_TELLING = 64

_State = Tensor | tuple[int, int] | None
_Told = list[bytes | tuple[int, int] | None]


class _Known:
    """Whether a call has moved a generator. Another one that leaves it as it was may have seeded it then, likewise."""

    is_moved = False


class Generators:
    """The states of the CPU's generator and of those of devices.

    While CUDA records a graph, its generator can neither be looked at nor be put back; a block that draws then computes
    something else in its recompute, which its checksum tells.

    Args:
        devices: where the stream lives, and where else the call may compute.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._devices = [device for device in devices if device.type not in HOSTS]
        self.cpu: Tensor | None = torch.default_generator.get_state()
        self.there: list[_State] = self._there()
        self._left: _Told | None = None  # what a call has left, if it is what it has found

    def forget_unused(self) -> None:
        """The call has ended: drop each state that is the same, as nothing was drawn from that generator."""
        here, there = torch.default_generator.get_state(), self._there()
        stays = [_same(self.cpu, here), *map(_same, self.there, there)]
        _Known.is_moved |= not all(stays)
        if stays[0]:
            self.cpu = None
        self.there = [None if same else state for same, state in zip(stays[1:], self.there, strict=True)]
        if not self.used:
            self._left = _told(here, there)

    def _there(self) -> list[_State]:
        return [_state_of(device) for device in self._devices]

    @property
    def used(self) -> bool:
        return self.cpu is not None or any(state is not None for state in self.there)

    def set(self) -> None:
        """Put the generators back to these states."""
        if self.cpu is not None:
            torch.default_generator.set_state(self.cpu)
        for device, state in zip(self._devices, self.there, strict=True):
            if isinstance(state, Tensor):
                torch.get_device_module(device).set_rng_state(state, device)
            elif state is not None:
                generator = _cuda_generator(device)
                seed, offset = state
                if generator.initial_seed() != seed:
                    generator.manual_seed(seed)
                generator.set_offset(offset)

    def replayed(self) -> AbstractContextManager[None]:
        """Context that runs with these states, then puts the generators back where they were."""
        if self.used:
            return self._replayed()
        return self._watched(self._left) if _Known.is_moved and self._left is not None else AS_IT_IS

    @contextmanager
    def _watched(self, left: _Told) -> Iterator[None]:
        """Of a call that has drawn nothing, or has seeded them as another one before it.

        Where it seeds, they end where it has left them, wherever they were. What another thread draws meanwhile stays.
        """
        outside = Generators(*self._devices)
        found = _told(outside.cpu, outside.there)
        # No tensor while the call needs the most memory.
        host, outside.cpu = bytearray(b"" if outside.cpu is None else bytes_on_host(outside.cpu)), None
        try:
            yield
        finally:
            now = _told(torch.default_generator.get_state(), self._there())
            if now == left and now != found:
                outside.cpu = torch.frombuffer(host, dtype=torch.uint8)
                outside.set()

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        outside = Generators(*self._devices)
        try:
            self.set()
            yield
        finally:
            outside.set()


def _state_of(device: torch.device) -> _State:
    if device.type != "cuda":
        state: Tensor = torch.get_device_module(device).get_rng_state(device)
        return state
    if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
        return None
    generator = _cuda_generator(device)
    return generator.initial_seed(), generator.get_offset()


def _told(here: _State, there: Iterable[_State]) -> _Told:
    """What tells the states of generators, in few bytes."""
    return [_in_few_bytes(state) if isinstance(state, Tensor) else state for state in (here, *there)]


def _in_few_bytes(state: Tensor) -> bytes:
    start, size = state.data_ptr(), min(state.nbytes, _TELLING)
    return ctypes.string_at(start, size) + ctypes.string_at(start + state.nbytes - size, size)


def _cuda_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()  # the generators are made with it
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def _same(before: _State, after: _State) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return bytes_on_host(before) == bytes_on_host(after)
    return before == after


def bytes_on_host(state: Tensor) -> bytes:
    """Those of a contiguous tensor in memory of the host, where the state of any generator lies: no device is asked."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)
