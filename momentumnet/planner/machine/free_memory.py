"""What is free on a device: by its own account, and on the CPU by that of the system and of the process's container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

# Of what is free, this share is left: allocators cut memory into pieces, and others use the device, too.
MARGIN = 0.1
_MEMINFO = Path("/proc/meminfo")
# Limit, use, and what of the use would be given back if it were needed: of version 2 and version 1.
_CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def free_bytes(device: torch.device) -> int:
    """Bytes that a step may take on a device, less a margin.

    What PyTorch's allocator keeps there for itself and has not handed out is free.

    Raises:
        ValueError: the device does not tell.
    """
    if device.type == "cpu":
        return int(_free_on_host() * (1 - MARGIN))
    module: Any = None if device.type == "meta" else torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        raise ValueError(f"budget='device': what is free on {device} is not known; give a number of bytes, e.g. '4GiB'")
    free, _ = module.mem_get_info(device)
    kept = module.memory_reserved(device) - module.memory_allocated(device)
    return int((free + kept) * (1 - MARGIN))


def _free_on_host() -> int:
    found = [_available()]
    for limit, use in _CONTAINERS:
        try:
            free = int(limit.read_text()) - int(use.read_text()) + _given_back(use.parent / "memory.stat")
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        found.append(max(0, free))
    return min(found)


def _available() -> int:
    """What the system says that a program could have without swapping."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            "budget='device': this system does not tell how much memory is free; give a number of bytes, e.g. '4GiB'"
        ) from error


def _given_back(statistics: Path) -> int:
    """Pages of files that a container would drop first."""
    fields = dict(line.split() for line in statistics.read_text().splitlines())
    return int(fields.get("inactive_file", 0))
