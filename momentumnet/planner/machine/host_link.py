"""What the link between a device and host memory moves in a second."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from momentumnet.errors import ConversionError
from momentumnet.recompute.saved.host_copies import pinned

# Copies that are timed: so large that what it takes to ask for one does not count, and of some the quickest.
SAMPLE = 1 << 26
REPEATS = 3

# Seconds to ask for a copy, so that copies that fit beside the computation are not made for nothing.
ASKING = 1e-5


@dataclass(frozen=True)
class HostLink:
    """Bytes a second, with pinned memory, while nothing else is copied.

    Attributes:
        to_host: from the device to the host.
        to_device: from the host to the device.
    """

    to_host: float
    to_device: float


# Of a device that there is not: what PCI Express 4.0 with 16 lanes moves of its 32 GB/s.
ASSUMED = HostLink(25e9, 25e9)


def link_of(device: torch.device, *, hollow: bool) -> HostLink:
    """The link of a device: measured, or assumed where there are no values.

    Raises:
        ConversionError: the device computes in host memory.
    """
    if device.type == "cuda":
        return ASSUMED if hollow else measured_link(device)
    if device.type == "meta":
        return ASSUMED
    raise ConversionError(
        f"offload=True moves activations from the device to host memory, and the example is on {device}, which "
        "is no CUDA device: nothing would be gained. Put the model and the example on the GPU, or leave offload out"
    )


def measured_link(device: torch.device) -> HostLink:
    """The link of a CUDA device."""
    there = torch.empty(SAMPLE, dtype=torch.uint8, device=device)
    here = pinned(SAMPLE)
    return HostLink(_bytes_a_second(here, there, device), _bytes_a_second(there, here, device))


def _bytes_a_second(target: torch.Tensor, source: torch.Tensor, device: torch.device) -> float:
    milliseconds = []
    with torch.cuda.device(device):
        for _ in range(REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            target.copy_(source, non_blocking=True)
            end.record()
            end.synchronize()
            milliseconds.append(start.elapsed_time(end))
    return 1000 * SAMPLE / min(milliseconds)
