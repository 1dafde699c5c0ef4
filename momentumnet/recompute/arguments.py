"""The arguments of one call, kept so that the call can be made again with another tensor in the stream's place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.errors import ReconstructionError


def version(tensor: Tensor) -> int:
    """The tensor's in-place counter; -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


class _Stream:
    """Stands in the kept arguments where the stream tensor stood."""


_STREAM = _Stream()
# Arguments of these very types hold nothing, so that there is nothing to walk.
_SINGLE = frozenset({type(None), bool, int, float, str, Tensor, nn.Parameter})


class Arguments:
    """The arguments of a call without the stream, held so that they keep no autograd graph alive.

    A non-leaf tensor that needs a gradient is kept as a detached alias: the block's own graph, which holds the real
    one, delivers the gradient; a reference here would tie the graph and the tape into a cycle.
    """

    def __init__(self, stream: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        flat = _SINGLE.issuperset(map(type, args)) and _SINGLE.issuperset(map(type, kwargs.values()))
        self._names = tuple(kwargs)
        self._spec: pytree.TreeSpec | None = None
        leaves = [*args, *kwargs.values()]
        if not flat:
            leaves, self._spec = pytree.tree_flatten((args, kwargs))
        aliases: dict[int, Tensor] = {}
        self._leaves = [_STREAM if stream is not None and leaf is stream else kept(leaf, aliases) for leaf in leaves]
        self._versions = [version(leaf) if isinstance(leaf, Tensor) else 0 for leaf in self._leaves]

    @property
    def device(self) -> torch.device:
        """Where the first tensor argument lives."""
        devices = [leaf.device for leaf in self._leaves if isinstance(leaf, Tensor)]
        return devices[0] if devices else torch.device("cpu")

    def with_stream(self, stream: Tensor | None, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another tensor in the stream's place."""
        for leaf, seen in zip(self._leaves, self._versions, strict=True):
            if isinstance(leaf, Tensor) and version(leaf) != seen:
                raise ReconstructionError(
                    f"block {name!r}: a tensor argument of shape {tuple(leaf.shape)} was changed in place after the "
                    "block's forward; pass a copy, or change it only after backward"
                )
        leaves = [stream if leaf is _STREAM else leaf for leaf in self._leaves]
        if self._spec is None:
            count = len(leaves) - len(self._names)
            return tuple(leaves[:count]), dict(zip(self._names, leaves[count:], strict=True))
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs


def kept(leaf: Any, aliases: dict[int, Tensor]) -> Any:
    """``leaf`` itself, or its alias without a history, one for each tensor."""
    if not isinstance(leaf, Tensor) or leaf.grad_fn is None:
        return leaf
    if id(leaf) not in aliases:
        aliases[id(leaf)] = leaf.detach().requires_grad_()
    return aliases[id(leaf)]


def replace_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with ``new`` wherever ``old`` itself stood.

    Other containers stay the caller's own: a block may write into a list or mapping that it is given.
    """

    def replaced(value: Any) -> Any:
        leaves, spec = pytree.tree_flatten(value)
        if all(leaf is not old for leaf in leaves):
            return value
        return pytree.tree_unflatten([new if leaf is old else leaf for leaf in leaves], spec)

    return tuple(map(replaced, args)), {name: replaced(value) for name, value in kwargs.items()}
