"""Copies to "host memory" on the CPU that are made as late as a device may make them: only when somebody waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from momentumnet.recompute.saved import offloaded_tensors
from momentumnet.recompute.saved.host_copies import HostCopies

GARBAGE = 0xFF  # floats of these bytes are NaN


class LateCopies(HostCopies):
    """Whoever reads what has not been waited for reads NaN; whoever lets go of memory too early is found out."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.buffers: list[int] = []  # addresses of host memory
        self.sent: list[StorageWeakRef] = []
        self.log: list[tuple[str, int]] = []  # "send" and "fetch" by number of the storage sent
        self.faults: list[str] = []
        self._asked: list[LateCopy] = []
        self._number_of: dict[int, int] = {}

    def send(self, source: Tensor) -> tuple[Tensor, LateCopy]:
        host, copy = super().send(source)
        self._number_of[host.data_ptr()] = len(self.sent)
        self.log.append(("send", len(self.sent)))
        self.sent.append(StorageWeakRef(source.untyped_storage()))
        return host, copy

    def fetch(self, host: Tensor, count: int) -> tuple[Tensor, LateCopy]:
        self.log.append(("fetch", self._number_of[host.data_ptr()]))
        return super().fetch(host, count)

    def _allocated(self, size: int) -> Tensor:
        # Not by PyTorch's allocator, which is the device here: what it hands out counts as memory of a step.
        host = torch.from_numpy(np.full(size, GARBAGE, dtype=np.uint8))
        self.buffers.append(host.data_ptr())
        return host

    def _begun(self, target: Tensor, source: Tensor) -> LateCopy:
        if target.data_ptr() not in self.buffers:
            target.fill_(GARBAGE)
        copy = LateCopy(self, target, source)
        self._asked.append(copy)
        return copy

    def make_until(self, last: LateCopy) -> None:
        """The copies are made in order."""
        while last in self._asked:
            self._asked.pop(0).make()

    @property
    def on_the_device(self) -> list[int]:
        """Numbers of storages that were sent and are still there."""
        return [number for number, storage in enumerate(self.sent) if not storage.expired()]

    def end(self) -> None:
        """The device makes what is left."""
        while self._asked:
            self._asked.pop(0).make()


class LateCopy:
    """One of them."""

    def __init__(self, copies: LateCopies, target: Tensor, source: Tensor) -> None:
        self._copies, self._count = copies, source.numel()
        self._memory = [StorageWeakRef(tensor.untyped_storage()) for tensor in (target, source)]

    def wait(self) -> None:
        self._copies.make_until(self)

    def make(self) -> None:
        storages = [torch.UntypedStorage._new_with_weak_ptr(memory.cdata) for memory in self._memory]
        if None in storages:
            self._copies.faults.append("memory was let go before it was copied")
            return
        target, source = (torch.empty(0, dtype=torch.uint8).set_(storage)[: self._count] for storage in storages)
        target.copy_(source)


@contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, smallest: int = 1024) -> Iterator[LateCopies]:
    """CPU tensors of ``smallest`` bytes and more are moved by late copies."""
    copies = LateCopies()
    monkeypatch.setattr(offloaded_tensors, "copies_of", lambda device: copies if device.type == "cpu" else None)
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", smallest)
    yield copies
    copies.end()
    assert not copies.faults
