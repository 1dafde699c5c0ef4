"""Gradients on their way between units, read on the autograd graph of a trace.

A unit alone is measured with the gradients that go in and come out. What it cannot know of: gradients that wait while
it runs, because a skip connection goes around it, and those of code outside of all units.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

# How the recorder attaches inputs that need no gradient, and so get none.
_ATTACHED = "_AttachBackward"
_PARAMETER = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True)
class Flow:
    """Bytes of gradients, by place: place 2 * n lies in front of unit n, place 2 * n + 1 is unit n.

    Attributes:
        waiting: of those that pass by on the way to earlier places.
        work: the most at once in code outside of all units, without those of its parameters.
        parameters: of that code's parameters.
        are_left: whether these are there from then on; else they are added to those that were there before, and go.
    """

    waiting: tuple[int, ...] = ()
    work: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()
    are_left: bool = True

    def in_front(self, unit: int) -> int:
        """Bytes at once in the code in front of a unit, and of its parameters' gradients."""
        if not self.work:
            return 0
        return self.waiting[2 * unit] + self.work[2 * unit] + self.parameters[2 * unit]

    def around(self, unit: int) -> int:
        """Bytes that wait while a unit runs."""
        return self.waiting[2 * unit + 1] if self.waiting else 0

    def of_parameters(self, unit: int) -> int:
        """Bytes of gradients that parameters in the code in front of a unit are left with."""
        return self.parameters[2 * unit] if self.parameters and self.are_left else 0

    def scaled(self, share: float) -> Flow:
        """At so large a share of the batch: what parameters get stays."""
        waiting, work = (tuple(int(size * share) for size in sizes) for sizes in (self.waiting, self.work))
        return replace(self, waiting=waiting, work=work)

    def with_work(self, place: int, changed: Callable[[int], int]) -> Flow:
        """With another work at a place, if there is any."""
        work = tuple(changed(size) if at == place else size for at, size in enumerate(self.work))
        return replace(self, work=work)

    def added(self) -> Flow:
        """Where gradients of parameters are added to those that are there, and nothing is left."""
        return replace(self, are_left=False)


def flow_of(returned: Sequence[Tensor], ranges: Sequence[tuple[int, int]], within: Sequence[Tensor]) -> Flow:
    """The flow of gradients from what a model returned.

    Args:
        returned: the tensors.
        ranges: for each unit the number of its first node, and that behind its last.
        within: parameters that units have.
    """
    starts = [start for start, _ in ranges]
    count = 2 * len(ranges) + 1
    ways = _Ways(count, {id(parameter) for parameter in within})

    def place(node: Node) -> int:
        number = node._sequence_nr()
        unit = bisect_right(starts, number) - 1
        return 2 * unit + 1 if unit >= 0 and number < ranges[unit][1] else 2 * (unit + 1)

    for node in _nodes(returned):
        ways.pass_through(node, place(node), [(behind, place(behind)) for behind in _behind(node)])
    return ways.flow()


class _Ways:
    """What has been seen of the ways that gradients take."""

    def __init__(self, count: int, elsewhere: set[int]) -> None:
        self._count, self._elsewhere = count, elsewhere
        self._longest: dict[Any, tuple[int, int, int]] = {}
        self._work = [0] * count
        self._parameters: dict[int, tuple[int, int]] = {}

    def pass_through(self, node: Node, place: int, behind: Sequence[tuple[Node, int]]) -> None:
        """A node takes gradients and hands gradients to those behind it."""
        handed = sum(_bytes(other) for other, _ in behind)
        if not place % 2:
            self._work[place] = max(self._work[place], _bytes(node) + handed)
        for parameter in _parameters(node):
            if id(parameter) not in self._elsewhere:
                last = max(place, self._parameters.get(id(parameter), (0, 0))[0])
                self._parameters[id(parameter)] = last, parameter.numel() * parameter.element_size()
        shared = "CatBackward" in node.name()  # it hands out pieces of one gradient, which lives as long as any of them
        for other, until in behind:
            key = node if shared else other
            size = _bytes(node) if shared else _bytes(other)
            before = self._longest.get(key, (place, until, size))
            self._longest[key] = max(place, before[0]), min(until, before[1]), size

    def flow(self) -> Flow:
        waiting, parameters = [0] * self._count, [0] * self._count
        for start, until, size in self._longest.values():
            for place in range(until + 1, start):
                waiting[place] += size
        for place, size in self._parameters.values():
            parameters[place] += size
        return Flow(tuple(waiting), tuple(self._work), tuple(parameters))


def _nodes(returned: Sequence[Tensor]) -> Iterator[Node]:
    """The nodes that gradients of these tensors go through, each once."""
    pending = [tensor.grad_fn for tensor in returned if tensor.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        for behind in _behind(node):
            if behind not in seen:
                seen.add(behind)
                pending.append(behind)


def _behind(node: Node) -> list[Node]:
    """Those that a node hands gradients to, but for parameters."""
    return [
        other
        for other, _ in node.next_functions
        if other is not None and other.name() != _ATTACHED and _parameter(other) is None
    ]


def _parameters(node: Node) -> Iterator[Tensor]:
    found = (_parameter(other) for other, _ in node.next_functions if other is not None)
    return (parameter for parameter in found if parameter is not None)


def _parameter(node: Node) -> Tensor | None:
    """The parameter whose gradient a node takes, also through a transpose, which hands on a view."""
    if node.name() == "TBackward0" and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node.variable if node.name() == _PARAMETER else None  # type: ignore[attr-defined]


def _bytes(node: Node) -> int:
    """Bytes of the gradients that come to a node."""
    found = 0
    for made in getattr(node, "_input_metadata", ()):  # private: shapes and types of a node's results
        found += torch.Size(made.shape).numel() * made.dtype.itemsize
    return found
