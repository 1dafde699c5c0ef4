"""Gradients on their way between units, read on the autograd graph of a trace.

A unit alone is measured with the gradients that go in and come out. What it cannot know of: gradients that wait while
it runs, because a skip connection goes around it, and those of code outside of all units.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

# How the recorder attaches inputs that need no gradient, and so get none.
_ATTACHED = "_AttachBackward"
# The node at which the gradient of a parameter, or of another leaf, ends.
PARAMETER = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True)
class Flow:
    """Bytes of gradients, by place: place 2 * n lies in front of unit n, place 2 * n + 1 is unit n.

    Attributes:
        waiting: of those that pass by on the way to earlier places.
        work: the most at once in code outside of all units, without those of its parameters.
        parameters: of parameters, each where backward comes to it first.
        left: of those by how much more are there from then on. Where what a step makes is added to gradients that were
            there before, that is none, but for parameters that backward comes to at several places: theirs wait.
        sums: of those that backward comes to again: the further gradient, and its sum with the one that waits.
        reached: whether backward comes there: not to heads whose output the loss does not use.
    """

    waiting: tuple[int, ...] = ()
    work: tuple[int, ...] = ()
    parameters: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    sums: tuple[int, ...] = ()
    reached: tuple[bool, ...] = ()

    def reaches_in_front(self, unit: int) -> bool:
        """Whether backward goes on in front of a unit; also where that is not known."""
        return not self.reached or any(self.reached[: 2 * unit + 1])

    def in_front(self, unit: int) -> int:
        """Bytes at once in the code in front of a unit, and of its parameters' gradients."""
        if not self.work:
            return 0
        place = 2 * unit
        return self.waiting[place] + max(self.work[place] + self.parameters[place], self.sums[place])

    def around(self, unit: int) -> int:
        """Bytes that wait while a unit runs."""
        return self.waiting[2 * unit + 1] if self.waiting else 0

    def of_unit(self, unit: int) -> int:
        """Bytes of gradients that parameters are left with by a unit."""
        return self.left[2 * unit + 1] if self.left else 0

    def summed(self, unit: int) -> int:
        """Bytes at once where gradients of a unit's parameters are added to others of theirs."""
        return self.around(unit) + self.sums[2 * unit + 1] if self.sums else 0

    def comes_again(self, unit: int) -> bool:
        """Whether gradients of a unit's parameters are added to others that wait."""
        return bool(self.sums) and self.sums[2 * unit + 1] > 0

    def of_parameters(self, unit: int) -> int:
        """Bytes of gradients that parameters in the code in front of a unit are left with."""
        return self.left[2 * unit] if self.left else 0

    def scaled(self, share: float) -> Flow:
        """At so large a share of the batch: what parameters get stays."""
        waiting, work = (tuple(int(size * share) for size in sizes) for sizes in (self.waiting, self.work))
        return replace(self, waiting=waiting, work=work)

    def with_layers(self, layers: Sequence[tuple[int, int]]) -> Flow:
        """With bytes that layers outside take, as they were measured, each in front of the unit of that number."""
        work = list(self.work)
        for unit, size in layers:
            if self.reached[2 * unit]:
                work[2 * unit] = max(work[2 * unit], size)
        return replace(self, work=tuple(work))

    def with_work(self, place: int, changed: Callable[[int], int]) -> Flow:
        """With another work at a place, if there is any."""
        work = tuple(changed(size) if at == place else size for at, size in enumerate(self.work))
        return replace(self, work=work)


def flow_of(
    returned: Sequence[Tensor],
    ranges: Sequence[tuple[int, int]],
    *,
    present: bool = False,
    untrained: Set[int] = frozenset(),
) -> Flow:
    """The flow of gradients from what a model returned.

    Args:
        returned: the tensors.
        ranges: for each unit the number of its first node, and that behind its last.
        present: whether gradients of parameters are there before.
        untrained: the numbers of nodes from which no gradient goes to what is trained.
    """
    starts = [start for start, _ in ranges]
    ways = _Ways(2 * len(ranges) + 1)

    def place(node: Node) -> int:
        number = node._sequence_nr()
        unit = bisect_right(starts, number) - 1
        return 2 * unit + 1 if unit >= 0 and number < ranges[unit][1] else 2 * (unit + 1)

    for node in _nodes(returned, untrained):
        ways.pass_through(node, place(node), [(behind, place(behind)) for behind in _behind(node, untrained)])
    return ways.flow(present=present)


class _Ways:
    """What has been seen of the ways that gradients take."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._longest: dict[Any, tuple[int, int, int]] = {}
        self._handed: dict[Any, tuple[int, int]] = {}  # by node its place, and bytes of the gradients that it makes
        self._whole: dict[Any, int] = {}  # by node, bytes of the gradient that it gets a piece of
        self._parameters: dict[int, dict[int, int]] = {}  # by parameter and place, bytes of its gradient

    def pass_through(self, node: Node, place: int, behind: Sequence[tuple[Node, int]]) -> None:
        """A node takes gradients and hands gradients to those behind it."""
        shared = "CatBackward" in node.name()  # it hands out pieces of one gradient, which lives as long as any of them
        self._handed[node] = place, 0 if shared else sum(_bytes(other) for other, _ in behind)
        for parameter in _parameters(node):
            whole = parameter.numel() * parameter.element_size()
            # A sparse gradient is made of what comes to the node.
            size = min(whole, _bytes(node)) if getattr(node, "_saved_sparse", False) else whole
            self._parameters.setdefault(id(parameter), {})[place] = size
        for other, until in behind:
            key = node if shared else other
            size = _bytes(node) if shared else _bytes(other)
            self._whole[other] = max(size, self._whole.get(other, 0))
            before = self._longest.get(key, (place, until, size))
            self._longest[key] = max(place, before[0]), min(until, before[1]), size

    def flow(self, *, present: bool) -> Flow:
        waiting, work, parameters, left, sums = ([0] * self._count for _ in range(5))
        for start, until, size in self._longest.values():
            for place in range(until + 1, start):
                waiting[place] += size
        for by_place in self._parameters.values():
            first, *others = sorted(by_place, reverse=True)
            size = max(by_place.values())
            parameters[first] += size
            left[first] += size if others or not present else 0
            left[min(by_place)] -= size if others and present else 0
            for place in others:
                sums[place] = max(sums[place], by_place[place] + size)
        for node, (place, handed) in self._handed.items():
            work[place] = max(work[place], self._whole.get(node, _bytes(node)) + handed)
        work[1::2] = [0] * len(work[1::2])  # units are measured by themselves
        places = {place for place, _ in self._handed.values()}
        reached = tuple(place in places for place in range(self._count))
        sizes = {"waiting": waiting, "work": work, "parameters": parameters, "left": left, "sums": sums}
        return Flow(reached=reached, **{name: tuple(found) for name, found in sizes.items()})


def _nodes(returned: Sequence[Tensor], untrained: Set[int]) -> Iterator[Node]:
    """The nodes that gradients of these tensors go through, each once."""
    ends = (tensor.grad_fn for tensor in returned)
    pending = [node for node in ends if node is not None and node._sequence_nr() not in untrained]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        for behind in _behind(node, untrained):
            if behind not in seen:
                seen.add(behind)
                pending.append(behind)


def _behind(node: Node, untrained: Set[int]) -> list[Node]:
    """Those that a node hands gradients to, but for parameters."""
    return [
        other
        for other, _ in node.next_functions
        if other is not None
        and other.name() != _ATTACHED
        and _parameter(other) is None
        and other._sequence_nr() not in untrained
    ]


def _parameters(node: Node) -> Iterator[Tensor]:
    found = (_parameter(other) for other, _ in node.next_functions if other is not None)
    return (parameter for parameter in found if parameter is not None)


def _parameter(node: Node) -> Tensor | None:
    """The parameter whose gradient a node takes, also through a transpose, which hands on a view."""
    if node.name() == "TBackward0" and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node.variable if node.name() == PARAMETER else None  # type: ignore[attr-defined]


def _bytes(node: Node) -> int:
    """Bytes of the gradients that come to a node."""
    found = 0
    for made in getattr(node, "_input_metadata", ()):  # private: shapes and types of a node's results
        found += torch.Size(made.shape).numel() * made.dtype.itemsize
    return found
