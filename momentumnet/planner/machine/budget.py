"""Budgets: numbers of bytes as users write them, and what of them may be used."""

from __future__ import annotations

import re
from fractions import Fraction

import torch

from momentumnet.planner.machine.free_memory import free_bytes

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
# The smallest peak that there is.
LEAST = "least"
# What is free on the device.
DEVICE = "device"
# Of gradients of parameters, which count: each step makes them, or they are there all the time and are added to.
GRADIENTS = ANEW, PRESENT = ("anew", "present")
# Of a budget, this share is left free for what the prediction may be off.
MARGIN = 0.05
CPU = torch.device("cpu")


def bytes_of(budget: int | str, device: torch.device = CPU) -> int | None:
    """A budget in bytes; None for ``"least"``.

    Args:
        budget: a number of bytes, a text with a unit (``"4GiB"``, ``"500 MB"``), ``"least"``, or ``"device"``.
        device: that of the step.

    Raises:
        ValueError: it is none of these, or the device does not tell what is free.

    Example:
        >>> bytes_of("1.5GiB")
        1610612736
    """
    if budget == LEAST:
        return None
    if budget == DEVICE:
        return free_bytes(device)
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    text = budget if isinstance(budget, str) else ""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*", text, re.IGNORECASE)
    size = int(Fraction(found[1]) * _UNITS.get(found[2].upper(), 0)) if found else 0
    if not size:
        raise ValueError(
            "budget must be a positive number of bytes, a text such as '4GiB' or '500MB', 'least' or 'device', got "
            f"{budget!r}"
        )
    return size


def allowed(limit: int) -> int:
    """The predicted bytes that a budget has room for."""
    return int(limit * (1 - MARGIN))
