"""The projections of an attention, read on the autograd graph: no class and no name says what is a value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import Node

from momentumnet.init.branches import BlockGraph
from momentumnet.init.joins import Join, Layers
from momentumnet.init.weight_graph import WeightGraph, is_attention
from momentumnet.streams.finding.skip import is_work, operation


@dataclass(frozen=True, eq=False)
class Attention:
    """The weight layers of a branch that attends.

    Attributes:
        cross: Whether the values come from elsewhere than the block's stream.
        values: The layers that make the values, w.r.t. which the attention is linear.
        outputs: The layers after the attention.
        stacks: Parameters that hold several projections: 3 (queries, keys, values) or 2 (keys, values).
    """

    cross: bool
    values: Layers
    outputs: Layers
    stacks: dict[nn.Parameter, int]


def attention_of(block: BlockGraph, join: Join) -> Attention | None:
    """The attention in a branch, None where there is none.

    It is a fused attention, or a product one factor of which comes from a softmax. The other factor is the values;
    their projection is the nearest weight layer below it, and what the nearest layers below the softmax share with it
    is stacked.
    """
    graph = block.graph
    beside = _below(graph, [join.skip], ())
    values: set[Node] = set()
    outputs = join.layers
    stacks: dict[nn.Parameter, int] = {}
    for node in _below(graph, join.branch, beside):
        factors = _factors(graph, node)
        if factors is None:
            continue
        logits, value = factors
        found = [layer for layer in graph.nearest([value]) if layer in join.layers]
        values.update(found)
        outputs -= block.table[node]
        others = {weight for layer in graph.nearest(logits) for weight in graph.weights[layer]}
        for weight in others.intersection(weight for layer in found for weight in graph.weights[layer]):
            stacks[weight] = 3 if others == {weight} else 2
    if outputs == join.layers:
        return None
    inside = graph.reaching([block.entry.edge.node] if block.entry.edge else [])
    return Attention(bool(values) and inside.isdisjoint(values), frozenset(values), outputs, stacks)


def stacked_in(blocks: Iterable[BlockGraph]) -> dict[nn.Parameter, int]:
    """How many projections are stacked in a parameter, for those that hold more than one."""
    found: dict[nn.Parameter, int] = {}
    for block in blocks:
        for join in block.joins:
            attention = attention_of(block, join)
            found.update(attention.stacks if attention else {})
    return found


def tables_of_values(graph: WeightGraph) -> set[nn.Parameter]:
    """Tables whose rows reach the output by more than what attentions are weighed with, as relative positions do."""
    tables: set[nn.Parameter] = set()
    pending, seen = [graph.output], set[Node]()
    while pending:
        node = pending.pop()
        if node in seen or node not in graph.operands:
            continue
        seen.add(node)
        tables.update(graph.looked_up.get(node, ()))
        factors = _factors(graph, node)
        pending.extend(graph.operands[node] if factors is None else [factors[1]])
    return tables


def is_causal(block: BlockGraph) -> bool:
    """Whether early positions of the stream do not see later ones, by the gradients of the block's output.

    A dimension is that of the positions, and the block is causal, where the first position does not depend on any
    later one and the last depends on the first. Along a batch dimension nothing depends on anything else.
    """
    output, entry, edge = block.call.output, block.entry, block.entry.edge
    if output is None or output.tensor is None or edge is None or output.shape != entry.shape:
        return False
    stream = output.tensor

    def gradient(dim: int, position: int) -> torch.Tensor:
        part = stream.select(dim, position)
        direction = torch.arange(part.numel(), device=part.device).cos().to(part.dtype).view_as(part)
        (found,) = torch.autograd.grad(part, [edge], direction, retain_graph=True)
        return found

    for dim in range(len(entry.shape) - 1):
        length = entry.shape[dim]
        if (
            length > 1
            and not gradient(dim, 0).narrow(dim, 1, length - 1).any()
            and gradient(dim, -1).select(dim, 0).any()
        ):
            return True
    return False


def _below(graph: WeightGraph, roots: Collection[Node], without: Collection[Node]) -> dict[Node, None]:
    found: dict[Node, None] = {}
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node in found or node in without or node not in graph.operands:
            continue
        found[node] = None
        pending.extend(graph.operands[node])
    return found


def _factors(graph: WeightGraph, node: Node) -> tuple[list[Node], Node] | None:
    """What the weights of an attention come from, and its values; None where ``node`` is no attention."""
    operands = graph.operands[node]
    if is_attention(node):
        return (list(operands[:2]), operands[2]) if len(operands) > 2 else None
    if not is_work(node) or node in graph.weights or len(operands) != 2:
        return None
    for weights, value in (operands, operands[::-1]):
        softmax = next(_softmaxes(graph, weights), None)
        if softmax is not None:
            return [softmax], value
    return None


def _softmaxes(graph: WeightGraph, node: Node) -> Iterator[Node]:
    """The softmax that ``node`` is made of without a product on the way."""
    pending = [node]
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen or node not in graph.operands or is_work(node):
            continue
        seen.add(node)
        if operation(node).endswith("Softmax"):
            yield node
        else:
            pending.extend(graph.operands[node])
