"""Measuring the tensor memory of a call exactly: what the allocators handed out, not what the process holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch._C._autograd import _enable_profiler
from torch._C._profiler import RecordScope
from torch.autograd.profiler import profile, record_function

_SPAN = "momentumnet::measure_memory"
_ALLOCATION = "[memory]"
_UNITS = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class MemoryReport:
    """Bytes that one call allocated for tensors.

    Attributes:
        peak_bytes: Largest number of bytes alive at once, of those allocated during the call.
        saved_bytes: Bytes held between forward and backward: allocated during the call and alive when the first
            backward pass in it starts, or when it returns if it runs none.
        backward_peak_bytes: Largest number of bytes alive at once from the start of that pass on; 0 without one.

    Example:
        >>> print(MemoryReport(peak_bytes=12 << 20, saved_bytes=10 << 20))
        peak 12.0 MiB, held between forward and backward 10.0 MiB
    """

    peak_bytes: int
    saved_bytes: int
    backward_peak_bytes: int = 0

    def __str__(self) -> str:
        """Both figures, readable, e.g. ``peak 12.3 MiB, held between forward and backward 10.1 MiB``."""
        peak, saved = format_bytes(self.peak_bytes), format_bytes(self.saved_bytes)
        return f"peak {peak}, held between forward and backward {saved}"


def format_bytes(count: int) -> str:
    """Writes a number of bytes with a binary unit and three significant digits.

    Example:
        >>> format_bytes(1536)
        '1.50 KiB'
    """
    if abs(count) < 1024:
        return f"{count} B"
    exponent = min((abs(count).bit_length() - 1) // 10, len(_UNITS))
    size = count / 1024**exponent
    decimals = 2 if abs(size) < 10 else 1 if abs(size) < 100 else 0
    return f"{size:.{decimals}f} {_UNITS[exponent - 1]}"


def measure_memory(fn: Callable[[], object]) -> MemoryReport:
    """Calls ``fn()`` and counts the tensor bytes that it allocates on CPU and CUDA (summed where it uses both).

    Every allocation and release that PyTorch's CPU allocator and CUDA caching allocator report in this call is
    followed by address, in the order in which it happens: results of operations, the workspaces inside them, gradients,
    tensors made in backward and in saved-tensor hooks. What was allocated before the call counts neither when
    it is used nor when it is released. The backward pass starts where the autograd engine evaluates its first node; the
    gradient of the loss itself (4 bytes for a float32 scalar) exists by then and counts as saved.

    The return value of ``fn`` is kept alive until the measurement ends and is then dropped. Not counted: memory that
    does not come from these allocators (NumPy arrays, pinned host memory, buffers that a library obtains itself) and
    what other Python threads allocate. A CUDA block counts with the size that the caching allocator
    gives it (a multiple of 512 bytes), and the first matrix product on a device allocates a lasting workspace: call
    ``fn`` once before measuring there.

    Args:
        fn: Function of no arguments, e.g. one forward and backward pass. It runs under ``torch.profiler``, which makes
            it slower but does not change what it computes.

    Returns:
        The peak and the bytes held between forward and backward.

    Raises:
        RuntimeError: A profiler is active already (so also for nested measurements), or ``fn`` ran one.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> measure_memory(lambda: x.exp().sum().backward()).saved_bytes  # exp's result, the loss and its gradient
        4008
    """
    with memory_measured() as found:
        result = fn()
    del result
    return found[0]


@contextmanager
def memory_measured() -> Iterator[list[MemoryReport]]:
    """The list gets the report of `measure_memory` for what is done inside; raises the same."""
    # No public call tells whether a profiler is running, and a second one silently ends the first.
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        raise RuntimeError(
            "measure_memory found a profiler that is already running (measurements cannot be nested, nor run "
            "inside torch.profiler); end it first"
        )
    with _quiet_profiler(), _AllocationsAlone(profile_memory=True) as profiler:
        with record_function(_SPAN):
            yield (found := [])
    found.append(_read(profiler))


class _AllocationsAlone(profile):
    """A profiler that leaves out the operations, of which there are several times as many as allocations.

    The profiler takes a fifth of the time that it does with them, and the allocations are the same.
    """

    def _start_trace(self) -> None:
        scopes = {RecordScope.USER_SCOPE, RecordScope.BACKWARD_FUNCTION}  # the span, and autograd's nodes
        _enable_profiler(self.config(), self.kineto_activities, scopes)  # type: ignore[call-arg]  # the stub has none


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keeps the profiler's backend from logging its start and stop to stderr; it reads the variable when first used."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _read(profiler: profile) -> MemoryReport:
    events = _ordered_events(profiler)
    span = next((event for _, name, event in events if name == _SPAN), None)
    if span is None:
        raise RuntimeError("measure_memory lost its events because the measured function ran a profiler of its own")
    alive: dict[tuple[str, int], int] = {}
    total = peak = backward_peak = 0
    saved: int | None = None
    first, last = span.start_time_ns, span.end_time_ns
    for time, name, event in events:
        if not first <= time <= last:
            continue
        if name == _ALLOCATION:
            total += _balance(alive, event.extra_fields)
            peak = max(peak, total)
            backward_peak = max(backward_peak, total) if saved is not None else 0
        elif saved is None and name != _SPAN:  # autograd's first node
            saved = backward_peak = total
    return MemoryReport(peak, total if saved is None else saved, backward_peak)


def _balance(alive: dict[tuple[str, int], int], record: Any) -> int:
    """Enters one allocation or release and returns by how much it changes the bytes alive."""
    key = (str(record.device), int(record.ptr))
    # Also for an allocation: an address handed out again was released where the profiler did not see it. A release
    # of an unknown address is memory from before the call.
    released = alive.pop(key, 0)
    if record.alloc_size <= 0:
        return -released
    alive[key] = int(record.alloc_size)
    return int(record.alloc_size) - released


def _ordered_events(profiler: profile) -> list[tuple[int, str, Any]]:
    """The allocations, the span and autograd's nodes, in the order in which they happened, in threads of autograd too.

    Each with its time and name: to ask an event for one takes as long as all else that is done with it.
    """
    # The public event list drops addresses and order of the allocations; only the experimental event tree has both.
    results: Any = profiler.kineto_results
    stack = list(reversed(results.experimental_event_tree()))
    events = []
    while stack:
        event = stack.pop()
        name = event.name
        if name == _ALLOCATION:
            events.append((event.start_time_ns, name, event))
            continue  # it has no children
        if name == _SPAN or event.typed[1].scope == RecordScope.BACKWARD_FUNCTION:
            events.append((event.start_time_ns, name, event))
        stack.extend(reversed(event.children))
    events.sort(key=itemgetter(0))
    return events
