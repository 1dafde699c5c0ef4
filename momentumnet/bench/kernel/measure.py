"""The kernels at one size, one gamma and one number of threads: how fast they are beside a plain addition."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch

from momentumnet.bench.kernel.operations import ADD, bytes_moved, operations
from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.reporting.results import Row


def measure(elements: int, gamma: Fraction, threads: int, device: torch.device, *, repeats: int) -> list[Row]:
    """A row for each operation.

    Args:
        elements: Size of the state.
        gamma: Momentum factor.
        threads: Number of CPU threads while it is measured.
        device: Where.
        repeats: Timed runs of each operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = interleaved_seconds(operations(elements, gamma, device), repeats=repeats, device=device)
    finally:
        torch.set_num_threads(before)
    return _rows(seconds, elements, gamma, threads)


def _rows(seconds: Mapping[str, float], elements: int, gamma: Fraction, threads: int) -> list[Row]:
    return [
        {
            "elements": elements,
            "gamma": str(gamma),
            "threads": threads,
            "operation": name,
            "seconds": duration,
            "bytes_per_second": elements * bytes_moved(gamma) / duration,
            "rate_to_add": seconds[ADD] / duration,
        }
        for name, duration in seconds.items()
    ]
