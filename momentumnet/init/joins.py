"""The residual sums of a block and what hangs on each: the branch, its weight layers in order, its last layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch.autograd.graph import Node

from momentumnet.init.weight_graph import WeightGraph, is_attention
from momentumnet.streams.finding.skip import is_work, operation

SUMS = frozenset({"Add", "Sub", "Rsub", "Addcmul", "Addcdiv", "Lerp"})
_JOINED = SUMS | {"Cat", "Stack", "Where"}
_FACTORS = frozenset({"Mul", "Addcmul"})
# Functions that are not zero at zero: a branch that goes through one stays on when the layer before is zero.
_NOT_ZERO_AT_ZERO = frozenset({
    "Sigmoid", "Softmax", "SafeSoftmax", "LogSoftmax", "LogSigmoid", "Softplus", "Exp", "Exp2", "Cos", "Cosh",
    "Hardsigmoid", "Logsumexp", "Reciprocal", "Rsqrt", "Log", "Erfc",
})  # fmt: skip

Layers = frozenset[Node]


@dataclass(frozen=True, eq=False)
class Join:
    """A residual sum.

    Attributes:
        node: The sum.
        skip: Its operand on the side of the block's input.
        branch: Its other operands.
        layers: The weight layers of the branch that are not on the side of the skip too.
        last: Those of them that, being zero, make the branch zero and are nearest to the sum.
        depth: Weight layers on the longest way through the branch up to ``last``: m of the Fixup paper.
    """

    node: Node
    skip: Node
    branch: tuple[Node, ...]
    layers: Layers
    last: Layers
    depth: int

    def inner(self, table: dict[Node, Layers]) -> Layers:
        """The layers of the branch before the last; layers of a gate that the last one feeds are not among them."""
        return self.layers.intersection(*[Layers().union(*(table[node] for node in self.last))]) - self.last


def joins_of(graph: WeightGraph, table: dict[Node, Layers]) -> list[Join]:
    """The residual sums on the way of the stream through a block, from the output backwards.

    An operand of a sum is the branch where weight layers are on its way and, on the way of the other operand, none or
    fewer, as in a shortcut by a projection. Sums inside a branch are not looked at.

    Args:
        graph: The graph of the block's call.
        table: Its ``layers()``.
    """
    joins: list[Join] = []
    seen: set[Node] = set()
    pending = [graph.output]
    while pending:
        node = pending.pop()
        if node in seen or node not in graph.operands:
            continue
        seen.add(node)
        join = _join(graph, table, node)
        if join is not None:
            joins.append(join)
            pending.append(join.skip)
        elif not is_work(node):
            pending.extend(graph.operands[node])
    return joins


def _join(graph: WeightGraph, table: dict[Node, Layers], node: Node) -> Join | None:
    operands = graph.operands[node]
    if operation(node) not in SUMS or len(operands) < 2:
        return None
    skip = min(operands, key=lambda operand: len(table.get(operand, Layers())))
    branch = tuple(operand for operand in operands if operand is not skip)
    below, beside = Layers().union(*(table.get(operand, Layers()) for operand in branch)), table.get(skip, Layers())
    layers, shortcut = below - beside, beside - below
    if not layers or len(shortcut) >= len(layers):
        return None
    last = _last_layers(graph, branch, layers, factors=operation(node) in _FACTORS)
    depths = _depths(graph, layers)
    return Join(node, skip, branch, layers, last, max(depths[layer] for layer in last))


def _depths(graph: WeightGraph, layers: Collection[Node]) -> dict[Node, int]:
    """For each node the number of ``layers`` on the longest way below it, itself included."""
    depths: dict[Node, int] = {}
    for node, operands in graph.operands.items():
        depths[node] = max((depths.get(operand, 0) for operand in operands), default=0) + (node in layers)
    return depths


def _last_layers(graph: WeightGraph, branch: tuple[Node, ...], layers: Layers, *, factors: bool) -> Layers:
    table: dict[Node, Layers | None] = {}
    for node in graph.operands:
        table[node] = _annihilators(graph, node, table)
    found = [table.get(operand) for operand in branch]
    sets = [entry for entry in found if entry is not None and entry <= layers]
    if sets and factors:
        return sets[-1]
    if len(sets) == len(found):
        return Layers().union(*sets)
    return frozenset(node for node in graph.nearest(branch) if node in layers)


def _annihilators(graph: WeightGraph, node: Node, table: dict[Node, Layers | None]) -> Layers | None:
    """The nearest weight layers that make the node's value zero by being zero, None where there are none."""
    if node in graph.weights:
        return frozenset({node})
    name, operands = operation(node), graph.operands[node]
    found = [table.get(operand) for operand in operands]
    if not found or name in _NOT_ZERO_AT_ZERO:
        return None
    if is_attention(node):
        return found[2] if len(found) > 2 else None  # queries, keys, values
    if name == "Div":
        return found[0]
    sets = [entry for entry in found if entry is not None]
    if name == "Mul" or is_work(node):
        return sets[-1] if sets else None
    if len(sets) < len(found) or (len(found) > 1 and name not in _JOINED):
        return None
    return Layers().union(*sets)
