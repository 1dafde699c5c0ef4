"""Modules whose forward goes through a function for a while: within the call, so hooks and converted blocks stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def wrapped_forwards(modules: Iterable[nn.Module], wrapper: Callable[..., Any]) -> Iterator[None]:
    """Call ``wrapper(module, forward, *args, **kwargs)`` for the modules' forward while the body runs."""
    wrapped = [(module, module.__dict__.get("forward")) for module in dict.fromkeys(modules)]
    try:
        for module, _ in wrapped:
            module.__dict__["forward"] = partial(wrapper, module, module.forward)
        yield
    finally:
        for module, own in wrapped:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own
