"""Passes through a stream on their way: the velocity travels with the identity of the stream tensor."""

from __future__ import annotations

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
