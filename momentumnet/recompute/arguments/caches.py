"""Key-value caches that blocks in training are given: they read them, and leave them as they are.

Decoders hand their blocks a cache by default, and each block adds its keys and values, which generation reads in the
next call and training never does. Kept, they would take the memory that recomputing saves. So in training each block
gets a copy of the cache as the model was given it, and what it adds goes with the copy: as if `use_cache=False`, or, of
a cache that holds a prefix, as if nobody would call again.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.recompute.arguments.arguments import named_arguments
from momentumnet.recompute.values.object_copies import copied, with_small_ones_cloned
from momentumnet.recompute.values.objects import Held, has_state, is_array

logger = logging.getLogger("momentumnet")

_NAMES = ("cache", "past_key_value", "layer_past")
_TOLD: set[tuple[str, str]] = set()


class Lent:
    """The arguments of one call, in training with copies in the place of caches.

    A cache is an object of Python, neither tensor nor plain container, whose keyword or class is named as one. Without
    gradients (generation) and in eval mode caches are handed on as they are.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        names: position or keyword of each copy among them.

    Raises:
        ConversionError: a cache that cannot be copied.
    """

    def __init__(self, block: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.names: frozenset[int | str] = frozenset()
        self._watched: list[tuple[str, str, Held]] = []
        if not module.training or not torch.is_grad_enabled():
            return
        copies: dict[int, Any] = {}
        for name, value in (*((type(arg).__name__, arg) for arg in args), *kwargs.items()):
            if id(value) not in copies and is_cache(name, value):
                copies[id(value)] = self._copy(block, name, value)
        if copies:
            named = named_arguments(args, kwargs).items()
            self.names = frozenset(key for key, value in named if id(value) in copies)
            self.args = tuple(copies.get(id(arg), arg) for arg in args)
            self.kwargs = {name: copies.get(id(value), value) for name, value in kwargs.items()}

    def _copy(self, block: str, name: str, cache: Any) -> Any:
        made, kind = copied(cache, with_small_ones_cloned), type(cache).__name__
        if made is cache:
            raise ConversionError(
                f"block {block!r} is given the cache {name!r} ({kind}), which refuses to be copied, so that a "
                "recompute could not be shown what the block saw; call the model with use_cache=False in training"
            )
        if (name, kind) not in _TOLD:
            self._watched.append((name, kind, Held([made])))
        return made

    def tell(self) -> None:
        """After the call: say once of each kind of cache that blocks would have filled it."""
        for name, kind, held in self._watched:
            if not held.is_unchanged and (name, kind) not in _TOLD:
                _TOLD.add((name, kind))
                logger.warning(
                    "in training, blocks read the key-value cache that they are given (%s, of class %s) and do not "
                    "fill it. Nothing to do; use_cache=False saves the making of an empty one. Calls without gradients "
                    "and in eval mode fill it as ever",
                    name,
                    kind,
                )


def is_cache(name: str, value: Any) -> bool:
    """Whether an object that has this name is a key-value cache."""
    if isinstance(value, (list, dict, tuple)) or is_array(type(value)) or not has_state(value):
        return False
    return any(part in name for part in _NAMES) or "cache" in type(value).__name__.lower()
