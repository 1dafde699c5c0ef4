"""What copies beside the computation ask of CUDA's streams, on streams that write down what they are asked."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from momentumnet.recompute.saved import offloaded_tensors
from momentumnet.recompute.saved.host_copies import CudaCopies, pinned
from momentumnet.recompute.saved.offloaded_tensors import OffloadedTensors, Parked


class Event:
    """What the stream had done when it was recorded."""

    def __init__(self, done: set[int]) -> None:
        self.done = set(done)


class Stream:
    """Knows which copies have been made before what it does next."""

    def __init__(self, device: Any = None) -> None:
        self.device, self.done, self.waits = device, set[int](), 0

    def wait_event(self, event: Event) -> None:
        assert not Cuda.capturing, "a graph that is being recorded waits for what lies outside of it"
        self.waits += 1
        self.done |= event.done

    def wait_stream(self, other: Stream) -> None:
        self.done |= other.done

    def record_event(self) -> Event:
        self.done.add(len(self.done))  # it does nothing but copy
        return Event(self.done)


class Cuda:
    """As torch.cuda has them."""

    current = Stream()
    capturing = False


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    before, Cuda.current = Cuda.current, stream
    try:
        yield
    finally:
        Cuda.current = before


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> CudaCopies:
    Cuda.current, Cuda.capturing = Stream(), False
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Cuda.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Cuda.capturing)
    monkeypatch.setattr(CudaCopies, "_allocated", lambda self, size: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: RECORDED.append((tensor.data_ptr(), stream)))
    RECORDED.clear()
    return CudaCopies(torch.device("cpu"))


RECORDED: list[tuple[int, Stream]] = []


def parked(copies: CudaCopies, count: int = 1) -> list[Parked]:
    return [Parked(copies, torch.ones(8).untyped_storage()) for _ in range(count)]


def test_one_wait_lets_go_of_all_that_has_left(copies: CudaCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloaded_tensors, "copies_of", lambda device: copies)
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", 1)
    offloaded_tensors.settle()  # what a step before has left open
    unit, calls, outputs = object(), [], []
    for name in ("first", "second"):
        calls.append(OffloadedTensors(name, unit, []))
        with calls[-1].moving():
            outputs.append(torch.ones(8, requires_grad=True).exp().exp().exp())
        offloaded_tensors.leave_open(calls[-1])
    assert len(copies.away) == 6
    assert offloaded_tensors.settle() == calls
    assert Cuda.current.waits == 1
    assert Cuda.current.done == set(range(6))


def test_every_stream_that_asks_waits(copies: CudaCopies) -> None:
    """The backward of two nodes on streams of their own, which share a storage."""
    (one,) = parked(copies)
    one.settle()
    one.fetch()
    for _ in range(2):
        one.storage()
    assert Cuda.current.waits == 2  # for the way there, and back
    side = Stream()
    with on(side):
        memory = one.storage()
    assert side.done == {0, 1}
    assert (memory.data_ptr(), side) in RECORDED  # nobody else gets it before this stream has read it


def test_memory_of_another_stream_is_known_to_be_in_use_on_this_one(copies: CudaCopies) -> None:
    (one,) = parked(copies)
    place = one.storage().data_ptr()
    assert [(place, Cuda.current)] == RECORDED


def test_while_a_graph_is_recorded_nothing_waits(copies: CudaCopies) -> None:
    (one,) = parked(copies)
    host, memory = one._host, weakref.ref(one._bytes)
    Cuda.capturing = True
    del one
    assert memory() is not None  # it may still be copied
    assert not copies._free[host.numel()]
    Cuda.capturing = False
    (other,) = parked(copies)
    assert memory() is None
    assert other._host is host
    assert Cuda.current.done == {0}


class Pinning(TorchFunctionMode):
    """Notes what is to be pinned, which nothing can be without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        self.asked.append(options.pop("pin_memory", False))
        return func(*args, **options)


def test_host_memory_is_pinned_whatever_the_default_device_is() -> None:
    with torch.device("meta"), Pinning() as pinning:
        memory = pinned(8)
    assert memory.is_cpu
    assert pinning.asked == [True]
