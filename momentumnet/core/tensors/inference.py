"""Inference mode, in which tensors have no in-place counter unless they are made outside of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

NO_COUNTER = -1


def gradients_on() -> bool:
    """Whether a graph is made: inference mode makes none, even where gradients are enabled inside of it."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def counted() -> AbstractContextManager[None]:
    """Context in which inference mode is laid aside: what is computed in it has a counter, and still no gradient."""
    return _counted() if torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _counted() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield
