"""What lies in front of all that is trained: a training step keeps nothing for it, though a trace sees it do so.

A trace gives a gradient to tensors that have none, so that skip connections can be seen. What autograd keeps for that
alone is forgotten here, before bytes are counted.
"""

from __future__ import annotations

from collections.abc import Set

import torch
from torch.autograd.graph import Node

from momentumnet.streams.tracing.calls import Call, Trace


def forget_untrained(trace: Trace) -> set[Call]:
    """Takes out of a trace what is kept only for gradients that the trace itself has asked for.

    Of a model of which nothing is trained it takes nothing: what will be trained is added later, as adapters are.

    Returns:
        The calls that kept something of their own, and keep nothing in a training step.
    """
    trained = _trained(trace)
    idle: set[Call] = set()
    if not any(trained.values()):
        return idle
    for call in trace.root.walk():
        stay = [trained.get(number, True) for number in call.saved_by]
        if all(stay):
            continue
        if not any(stay):
            idle.add(call)
        for kept in (call.saved, call.saved_at, call.saved_by):
            kept[:] = [entry for entry, needed in zip(kept, stay, strict=True) if needed]
    return idle


def untrained_nodes(trace: Trace) -> frozenset[int]:
    """The numbers of the nodes from which no gradient goes to what is trained; none where nothing is."""
    trained = _trained(trace)
    return frozenset(number for number, is_so in trained.items() if not is_so) if any(trained.values()) else frozenset()


def keeps_nothing(call: Call, idle: Set[Call]) -> bool:
    """Whether a call kept something in the trace, itself or in what it called, and keeps nothing in a step."""
    inside = list(call.walk())
    return not idle.isdisjoint(inside) and not any(inner.saved for inner in inside)


def _trained(trace: Trace) -> dict[int, bool]:
    """By their numbers, the nodes of the graph, and whether a gradient goes from them to what is trained."""
    edges = (tensor.grad_fn for tensor in trace.returned if isinstance(tensor.grad_fn, Node))
    found: dict[Node, bool] = {}
    pending = [(node, False) for node in edges]
    while pending:
        node, complete = pending.pop()
        if complete:
            found[node] = any(found[following] for following in _behind(node)) or _is_leaf(node, trace.attached)
        elif node not in found:
            found[node] = False  # there are no cycles: it is looked at again behind all that follow it
            pending.append((node, True))
            pending += [(following, False) for following in _behind(node)]
    return {node._sequence_nr(): trained for node, trained in found.items() if node.next_functions}


def _behind(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _is_leaf(node: Node, attached: torch.Tensor | None) -> bool:
    """Whether gradients are added up here, for another tensor than the one that the trace has attached."""
    variable = getattr(node, "variable", None)
    return variable is not None and variable is not attached
