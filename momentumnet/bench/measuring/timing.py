"""Durations of operations that take turns, so that a machine that gets slower meanwhile slows them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

SHORTEST = 0.02  # seconds that one timed run lasts at least


def interleaved_seconds(
    operations: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median duration of one call of each operation.

    Each timed run calls its operation as often as it takes to last ``SHORTEST``.
    """
    calls = {name: _calls(operation, device) for name, operation in operations.items()}
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(repeats):
        for name, operation in operations.items():
            seconds[name].append(_duration(operation, calls[name], device) / calls[name])
    return {name: median(values) for name, values in seconds.items()}


def _calls(operation: Callable[[], object], device: torch.device) -> int:
    calls = 1
    _duration(operation, calls, device)  # warms up
    while (seconds := _duration(operation, calls, device)) < SHORTEST:
        calls = max(2 * calls, int(calls * SHORTEST / max(seconds, 1e-9)))
    return calls


def _duration(operation: Callable[[], object], calls: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        operation()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
