"""Where and with what a benchmark measures: hardware, kernels and software."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision

from momentumnet import native
from momentumnet.arithmetic.compiled import libraries


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware that a benchmark runs on."""
    found = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "kernels": kernels_on(device),
    }
    return {**found, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else found


def kernels_on(device: torch.device) -> str:
    """Which implementation of the momentum step serves a device, and why if it is the slow one."""
    if reason := native.reason(device):
        return f"reference ({reason})"
    return "native" if device.type == "cuda" else f"native, {libraries.cpu().variant}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """The software that a benchmark runs on."""
    from momentumnet import __version__

    return {
        "momentumnet": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }
