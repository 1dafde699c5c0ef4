"""Random generators of a training: seeded for it, and put back after it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from momentumnet.streams.tracing.python_generators import python_generators_kept


def seed_of(seed: int, *purpose: object) -> int:
    """A seed for one purpose that no other purpose and no other seed shares."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


@contextmanager
def seeded(seed: int, model: nn.Module) -> Iterator[None]:
    """Context in which the global generators of torch, numpy and random begin with ``seed``.

    Torch's are those of the CPU and of the model's devices. Outside they go on as if nothing had been drawn.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), python_generators_kept():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one, by which a training function may draw)
        yield
