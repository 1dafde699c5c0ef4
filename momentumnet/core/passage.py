"""Passes through a stream on their way: the velocity travels with the identity of the stream tensor."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from momentumnet.core.tape import Tape


@dataclass
class Passage:
    """Where one pass through the stream stands: carried by the identity of the tensor handed to the parent."""

    tape: Tape
    last: int  # place of the block that returned the tensor; -1 before the first
    velocity: Tensor | None
    counter: int  # the tensor's in-place counter when it was handed out
    node: torch.autograd.graph.Node | None  # and its place in the graph
    unfinished: Unfinished
    rivals: frozenset[int | str] = frozenset()  # arguments of the first block that could have been the stream, too


class Unfinished:
    """Alive while a pass through the stream may still go on; knows its last block."""

    __slots__ = ("__weakref__", "last", "over")

    def __init__(self) -> None:
        self.last = -1
        self.over = False

    def end(self, _: object) -> None:
        """Backward has come by: a pass that left out its last block goes on no more."""
        self.over = True


class Carried:
    """Passages by the identity of their stream tensor; an entry ends with its tensor, and is not copied or pickled."""

    def __init__(self) -> None:
        self._passages: dict[int, tuple[weakref.ref[Tensor], Passage]] = {}

    def put(self, x: Tensor, passage: Passage) -> None:
        """Remember the passage of the tensor ``x``."""
        key, passages = id(x), self._passages
        passages[key] = (weakref.ref(x, lambda _: passages.pop(key, None)), passage)

    def take(self, x: Tensor) -> Passage | None:
        """The passage of ``x``, once: a second block on the same tensor finds none."""
        entry = self._passages.get(id(x))
        if entry is None or entry[0]() is not x:
            return None
        del self._passages[id(x)]
        return entry[1]

    def __contains__(self, x: object) -> bool:
        entry = self._passages.get(id(x))
        return entry is not None and entry[0]() is x

    def __reduce__(self) -> tuple[type[Carried], tuple[()]]:
        return Carried, ()


def tensors_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Tensor]:
    """The tensors among the arguments, by position or keyword."""
    named: dict[int | str, Any] = dict(enumerate(args))
    named.update(kwargs)
    return {key: value for key, value in named.items() if isinstance(value, Tensor)}


def rivals_of(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[int | str]:
    """The arguments beside ``x`` that have its shape and kind."""
    return frozenset(
        key
        for key, value in tensors_among(args, kwargs).items()
        if value is not x and value.is_floating_point() and not value.is_nested and value.shape == x.shape
    )
