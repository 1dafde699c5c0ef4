"""Copies between a device and host memory beside the computation, and the host memory that they use again and again."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import MutableMapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_PLAIN = frozenset({Tensor, nn.Parameter})


class Copy(Protocol):
    """A copy that has been asked for."""

    def wait(self) -> None:
        """What the device computes from now on comes behind the copy; the caller does not wait."""


class HostCopies:
    """The copies of one device, done in the order in which they were asked for.

    Host memory that is given back is handed out again at once, though it may still be copied: the next copy comes
    behind that one. It is kept by sizes of four to a doubling, and never given back to the system: a training step asks
    for what the step before gave back.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # What lies in host memory now, by its storage on the device and the in-place counter.
        self.away: MutableMapping[Any, Any] = WeakValueDictionary()
        self._free: defaultdict[int, deque[Tensor]] = defaultdict(deque)
        self._held: list[tuple[Tensor, Tensor, Copy]] = []

    def takes(self, tensor: Tensor) -> bool:
        """Whether the tensor is nothing but its bytes, so that it can be copied as such."""
        plain = type(tensor) in _PLAIN and tensor.layout is torch.strided
        return plain and not tensor.is_conj() and not tensor.is_neg()

    def send(self, source: Tensor) -> tuple[Tensor, Copy]:
        """Begin to copy bytes to host memory; the caller holds them until it has waited.

        Returns:
            Host memory, of that size or a little more, and the copy.
        """
        self._end_waiting()
        size = _class_of(source.numel())
        try:
            host = self._free[size].pop()
        except IndexError:
            host = self._allocated(size)
        return host, self._begun(host[: source.numel()], source)

    def fetch(self, host: Tensor, count: int) -> tuple[Tensor, Copy]:
        """Begin to copy so many bytes back; what is returned may be read, or let go, once the copy was waited for."""
        target = torch.empty(count, dtype=torch.uint8, device=self.device)
        return target, self._begun(target, host[:count])

    def used(self, memory: Tensor) -> None:
        """What came back is read by what the device is asked to compute from now on, on whatever stream that is."""

    @property
    def may_wait(self) -> bool:
        """Whether the device can be made to wait now."""
        return True

    def give_back(self, host: Tensor) -> None:
        """Host memory of `send` is not needed any more."""
        self._free[host.numel()].append(host)

    def let_go(self, host: Tensor, memory: Tensor, copy: Copy) -> None:
        """Nobody needs what is being copied any more: neither side is used again before the copy has been made."""
        self._held.append((host, memory, copy))
        self._end_waiting()

    def _end_waiting(self) -> None:
        while self._held and self.may_wait:
            try:
                host, _, copy = self._held.pop()
            except IndexError:  # another thread was quicker
                return
            copy.wait()
            self.give_back(host)

    def _allocated(self, size: int) -> Tensor:
        """New host memory."""
        raise NotImplementedError

    def _begun(self, target: Tensor, source: Tensor) -> Copy:
        """A copy behind all that the device has been asked to compute so far, and behind the copies before."""
        raise NotImplementedError


class CudaCopies(HostCopies):
    """Copies to pinned memory and back, on a stream of their own, so that the device goes on computing."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._asked = 0
        # By stream, up to which copy it waits: it waits for those in front of that one as well.
        self._waited: dict[torch.cuda.Stream, int] = {}

    def takes(self, tensor: Tensor) -> bool:
        """Also: no CUDA graph is being recorded, whose replays would all copy to the same host memory."""
        return super().takes(tensor) and self.may_wait

    def used(self, memory: Tensor) -> None:
        memory.record_stream(torch.cuda.current_stream(self.device))

    @property
    def may_wait(self) -> bool:
        """Not while a CUDA graph is recorded: a wait for what lies outside of it would break it off."""
        return not torch.cuda.is_current_stream_capturing()

    def send(self, source: Tensor) -> tuple[Tensor, Copy]:
        # Memory that was allocated on another stream than computes with it now is not handed out there, when it is let
        # go, before this one has waited for the copy. Where it is the same stream, this does nothing.
        self.used(source)
        return super().send(source)

    def _allocated(self, size: int) -> Tensor:
        return pinned(size)

    def _begun(self, target: Tensor, source: Tensor) -> Copy:
        computing = torch.cuda.current_stream(self.device)
        with self._lock:
            # Also on the way back: the target's memory may be in use by what was computed before it was allocated.
            self._stream.wait_stream(computing)
            with torch.cuda.stream(self._stream):
                target.copy_(source, non_blocking=True)
            self._asked += 1
            return _CudaCopy(self, self._asked, self._stream.record_event(), computing)

    def have_waited(self, stream: torch.cuda.Stream, number: int, done: torch.cuda.Event) -> None:
        """The stream goes on behind a copy."""
        if self._waited.get(stream, 0) < number:
            stream.wait_event(done)
            self._waited[stream] = number


class _CudaCopy:
    def __init__(self, copies: CudaCopies, number: int, done: torch.cuda.Event, computing: torch.cuda.Stream) -> None:
        self._copies, self._number, self._done, self._computing = copies, number, done, computing

    def wait(self) -> None:
        # The stream that the memory was allocated on is the one on which it is used next once it has been let go.
        self._copies.have_waited(self._computing, self._number, self._done)
        current = torch.cuda.current_stream(self._computing.device)
        if current != self._computing:
            self._copies.have_waited(current, self._number, self._done)


def pinned(count: int) -> Tensor:
    """So many bytes of host memory that a device copies beside its computation, whatever the default device is."""
    return torch.empty(count, dtype=torch.uint8, device="cpu", pin_memory=True)


_OF_DEVICE: dict[torch.device, HostCopies | None] = {}


def copies_of(device: torch.device) -> HostCopies | None:
    """The copies of a device; None where they would gain nothing, as it computes in host memory."""
    if device not in _OF_DEVICE:
        _OF_DEVICE[device] = CudaCopies(device) if device.type == "cuda" and torch.cuda.is_available() else None
    return _OF_DEVICE[device]


def _class_of(count: int) -> int:
    """The size in which so many bytes are kept: of four to a doubling, the next one."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step
