"""The arguments of one call, kept so that the call can be made again with another tensor in the stream's place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.argument_objects import LetGo, can_be_let_go, has_history, is_object, signature


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
    one, delivers the gradient; a reference here would tie the graph and the tape into a cycle. An object that comes to
    hold such tensors is let go (`let_go`).
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
        # The objects among them, by the argument in which they stand, and what they look like before the call.
        self._objects: list[tuple[int | str, Any]] = []
        self._changed: list[tuple[int | str, str]] = []
        if not flat:
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            found = [(key, leaf) for key, value in named for leaf in pytree.tree_leaves(value) if is_object(leaf)]
            self._objects = [(key, (leaf, signature(leaf))) for key, leaf in found]

    def notice_changes(self) -> None:
        """The first run is over: remember which objects it has changed."""
        for key, (leaf, before) in self._objects:
            if signature(leaf) != before:
                self._changed.append((key, type(leaf).__name__))
        self._objects = []

    @property
    def changed(self) -> list[tuple[int | str, str]]:
        """Position or keyword, and type, of each object that the first run has changed."""
        return self._changed

    def let_go(self, done: dict[int, LetGo]) -> None:
        """Hold the objects that hold an autograd graph by now no longer; ``done`` has those of other calls."""
        for index, leaf in enumerate(self._leaves):
            if is_object(leaf) and not isinstance(leaf, (LetGo, _Stream)):
                if id(leaf) not in done and can_be_let_go(leaf) and has_history(leaf):
                    done[id(leaf)] = LetGo(leaf)
                self._leaves[index] = done.get(id(leaf), leaf)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors among them, with names for messages."""
        for index, leaf in enumerate(self._leaves):
            if isinstance(leaf, Tensor):
                yield f"tensor argument {index}", leaf

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
        leaves = [leaf.get() if isinstance(leaf, LetGo) else leaf for leaf in leaves]
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
