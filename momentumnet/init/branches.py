"""Residual blocks of a model with their branches and weight layers, by parameter names: what an initialisation scales.

Blocks that keep the shape are those of the streams' discovery (:mod:`momentumnet.streams`), also where one stands
alone. Blocks that change the shape, such as the first of a ResNet's stage, are found beside them: of the same class, or
handing a block its input or taking its output; where none keeps it, all that add a branch. Both are read on the
autograd graph of one traced forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.autograd.graph import Node

from momentumnet.errors import ConversionError
from momentumnet.init.joins import Join, Layers, joins_of
from momentumnet.init.weight_graph import WeightGraph
from momentumnet.streams.blocks.converted import roles_laid_aside
from momentumnet.streams.finding.explain import explain
from momentumnet.streams.finding.select import Judge, select_blocks
from momentumnet.streams.tracing.calls import Call, Endpoint, Trace
from momentumnet.streams.tracing.trace import record


@dataclass(eq=False)
class BlockGraph:
    """A residual block's call: its graph, the weight layers below each node, and its residual sums, in call order.

    ``entry`` is the stream as it comes in.
    """

    call: Call
    entry: Endpoint
    graph: WeightGraph
    table: dict[Node, Layers]
    joins: list[Join]


@dataclass(eq=False)
class Anatomy:
    """What one traced forward pass shows of a model; holds the pass's graph, so drop it after use.

    Attributes:
        names: Name of each parameter.
        trace: The calls.
        graph: The graph of the whole pass.
        blocks: The residual blocks in call order, each with one branch or more.
        looked_at: What was looked at and is no residual block, one line each.
    """

    names: dict[nn.Parameter, str]
    trace: Trace
    graph: WeightGraph
    blocks: list[BlockGraph]
    looked_at: list[str]

    def names_of(self, graph: WeightGraph, layers: Layers) -> tuple[str, ...]:
        """Names of the weights of some layers of a graph, in the order of its nodes."""
        ordered = (node for node in graph.weights if node in layers)
        return tuple(dict.fromkeys(self.names[weight] for node in ordered for weight in graph.weights[node]))

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights of all layers by name, in the model's order."""
        used = {weight for found in self.graph.weights.values() for weight in found}
        for block in self.blocks:
            used.update(weight for found in block.graph.weights.values() for weight in found)
        return {name: parameter for parameter, name in self.names.items() if parameter in used}

    def final_layers(self) -> Layers:
        """The last weight layers of the network, outside all branches: the classifier."""
        sums = {join.node for block in self.blocks for join in block.joins}
        seen: set[Node] = set()
        pending, found = [self.graph.output], set()
        while pending:
            node = pending.pop()
            if node in seen or node in sums or node not in self.graph.operands:
                continue
            seen.add(node)
            if node in self.graph.weights:
                found.add(node)
            else:
                pending.extend(self.graph.operands[node])
        return frozenset(found)


@contextmanager
def dissected(model: nn.Module, example_inputs: Any) -> Iterator[Anatomy]:
    """Traces ``model`` once, in eval mode, as the residual network that it is or was before its conversion.

    Args:
        model: Any module, converted or not; it is left as it was found.
        example_inputs: A tensor or a list (one positional argument), a tuple (the positional arguments) or a mapping
            (the keyword arguments).

    Raises:
        ConversionError: the model returns no floating-point tensor, or takes a weight through a computation.

    Example:
        >>> import torch, torchvision
        >>> with dissected(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32)) as anatomy:
        ...     print(len(anatomy.blocks))
        8
    """
    with roles_laid_aside(model), _all_in_the_graph(model):
        yield _anatomy(model, record(model, example_inputs))


@contextmanager
def _all_in_the_graph(model: nn.Module) -> Iterator[None]:
    """Frozen parameters would not be seen in the autograd graph."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _anatomy(model: nn.Module, trace: Trace) -> Anatomy:
    output = trace.root.children[0].output
    if output is None or output.edge is None:
        raise ConversionError(
            f"{type(model).__name__} returns no floating-point tensor that depends on its parameters, so its branches "
            "cannot be followed; pass example_inputs for which it returns a tensor, not a loss without gradients"
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    graph = WeightGraph(output.edge.node)
    if graph.computed:
        computed = ", ".join(sorted(names[parameter] for parameter in graph.computed))
        raise ConversionError(
            f"a layer's weight is computed from the parameters {computed} (weight normalisation, masks, a "
            "parametrisation?), so they cannot be set one by one; undo that first "
            "(torch.nn.utils.parametrize.remove_parametrizations, momentumnet.prune.remove_masks)"
        )
    judge = Judge()
    keeping = [_unwrapped(call) for call in select_blocks(trace.root, judge, lambda name: True)]
    found = [(call, _block(call, judge)) for call in [*keeping, *_changing_shape(trace, keeping)]]
    blocks = [block for _, block in sorted(found, key=lambda pair: pair[0].index) if block is not None and block.joins]
    looked_at = [
        f"{rejection.path or '(root)'} ({', '.join(rejection.blocks[:4])}): {rejection.reason}"
        for rejection in explain(trace.root, judge, keeping)
    ]
    looked_at += [
        f"{call.name}: no sum of its input and a branch" for call, block in found if not (block and block.joins)
    ]
    return Anatomy(names, trace, graph, blocks, looked_at)


def _unwrapped(call: Call) -> Call:
    while call.plain_container and len(call.children) == 1:
        call = call.children[0]
    return call


def _changing_shape(trace: Trace, keeping: list[Call]) -> list[Call]:
    """Calls with a residual sum that change the shape, beside or alike those that keep it, if there are any."""
    if not keeping:
        return [inner for call in trace.root.children[0].children for inner in _with_sums(call)]
    within = {inner for call in keeping for inner in call.walk()}
    holders = {call for call in trace.root.walk() if any(inner in within for inner in call.children)}
    holders |= {call for call in trace.root.walk() if any(inner in holders for inner in call.walk())}
    classes = {type(call.module) for call in keeping}
    ends = {call.output.key for call in keeping if call.output} | {end.key for call in keeping for end in call.inputs}
    found: list[Call] = []
    pending = [trace.root]
    while pending:
        call = pending.pop()
        if call in within:
            continue
        if call not in holders and call.composite and not call.plain_container and call.inputs and call.output:
            related = type(call.module) in classes or call.output.key in ends or call.inputs[0].key in ends
            block = _block(call, None) if related else None
            if block is not None and block.joins:
                found.append(call)
                continue
        pending.extend(call.children)
    return found


def _with_sums(call: Call) -> list[Call]:
    """The innermost calls with a residual sum, as where each stage of a ResNet is a single block."""
    found = [inner for child in call.children for inner in _with_sums(child)]
    if found or not call.composite or call.plain_container or not call.inputs:
        return found
    block = _block(call, None)
    return [call] if block is not None and block.joins else []


def _block(call: Call, judge: Judge | None) -> BlockGraph | None:
    entry = (judge(call).entry if judge is not None else None) or next(iter(call.inputs), None)
    if entry is None or entry.edge is None or call.output is None or call.output.edge is None:
        return None
    graph = WeightGraph(call.output.edge.node, {entry.edge.node, *call.side_nodes})
    table = graph.layers()
    return BlockGraph(call, entry, graph, table, joins_of(graph, table)[::-1])
