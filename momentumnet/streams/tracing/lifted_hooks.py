"""Blocks that take a gradient by torch.func while they are recorded: it refuses to run under saved-tensor hooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import graph
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.recompute.surroundings.stand_in import StandIn


class _Hooks(threading.local):
    """The hooks that are lifted in this thread, as they are packed and opened."""

    lifted: tuple[Any, Any] | None = None


_HOOKS = _Hooks()


@contextmanager
def lifted_for_transforms(hooks: saved_tensors_hooks) -> Iterator[None]:
    """Inside, a block may take a gradient by torch.func.

    What autograd saves in there is not shown to the hooks. Hooks of the block's own are refused as ever.
    """
    outside = _HOOKS.lifted
    try:
        _HOOKS.lifted = (hooks.pack_hook, hooks.unpack_hook)
        with _REFUSING.standing():
            yield
    finally:
        _HOOKS.lifted = outside


@contextmanager
def _lifting(error_message: str) -> Iterator[None]:
    """PyTorch's function, which refuses, with the hooks lifted first."""
    own = _HOOKS.lifted
    is_lifted = own is not None and torch._C._autograd._top_saved_tensors_default_hooks(True) == own
    if is_lifted:
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        with _REFUSING.original(error_message):
            yield
    finally:
        if own is not None and is_lifted:
            torch._C._autograd._push_saved_tensors_default_hooks(*own)


_REFUSING = StandIn(graph, "disable_saved_tensors_hooks", _lifting)
