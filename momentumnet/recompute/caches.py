"""Key-value caches that a network in training is given: its blocks read them, and leave them as they are.

A decoder hands its blocks a cache by default, and each block appends its keys and values, which generation reads in the
next call and training reads never. Kept, they would take the memory that the recompute saves; appended to twice, they
would be wrong. So in training each block gets a copy of the cache as the model got it, and what it adds goes with the
block, as `use_cache=False` has it.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import nn

from momentumnet.recompute.objects import copied, has_state

logger = logging.getLogger("momentumnet")

_NAMES = ("cache", "past_key_value", "layer_past")


def read_only(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call in training, with a copy of each cache that it could write to.

    A cache is an object of Python, no tensor or plain container, whose class or keyword is named as one.
    """
    if not module.training or not torch.is_grad_enabled():
        return args, kwargs
    found = [*((type(arg).__name__, arg) for arg in args), *kwargs.items()]
    caches = [(name, value) for name, value in found if _is_cache(name, value)]
    if not caches:
        return args, kwargs
    copies = {id(cache): copied(cache) for _, cache in caches}
    return (
        tuple(copies.get(id(arg), arg) for arg in args),
        {name: copies.get(id(value), value) for name, value in kwargs.items()},
    )


def _is_cache(name: str, value: Any) -> bool:
    if isinstance(value, (list, dict, tuple)) or not has_state(value):
        return False
    return any(part in name for part in _NAMES) or "cache" in type(value).__name__.lower()


@functools.cache
def _say_once(name: str, kind: str) -> None:
    logger.warning(
        "blocks in training read the key-value cache that they are given (%s, a %s) and do not fill it, as with "
        "use_cache=False: pass that to save the time of making one. Generation, without gradients, fills it as ever",
        name,
        kind,
    )
