"""Where Fixup's scalars go: which called modules they stand beside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch.autograd.graph import Node

from momentumnet.init.branches import Anatomy
from momentumnet.init.scalars import INPUT_BIAS, MULTIPLIER, OUTPUT_BIAS
from momentumnet.init.weight_graph import WeightGraph
from momentumnet.streams.finding.skip import operation

_ACTIVATIONS = frozenset({
    "Relu", "Gelu", "Silu", "Tanh", "Sigmoid", "LeakyRelu", "Elu", "Celu", "Selu", "Hardtanh", "Hardswish",
    "Hardsigmoid", "Softplus", "Softsign", "Mish", "Threshold", "Prelu", "PreluKernel", "LogSigmoid", "Rrelu",
    "RreluWithNoise",
})  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """Pairs of module name and scalar, each once, and what could not be placed."""

    scalars: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def place_scalars(anatomy: Anatomy) -> Placement:
    """One bias before each weight layer, one before each activation, one multiplier in each branch."""
    sites = _Sites(anatomy)
    found: dict[tuple[str, str], None] = {}
    missing: list[str] = []
    for name in anatomy.weights():
        site = sites.of(name)
        if site is None:
            missing.append(name)
        else:
            found[site, INPUT_BIAS] = None
    for block in anatomy.blocks:
        for join in block.joins:
            for name in anatomy.names_of(block.graph, join.last):
                if site := sites.of(name):
                    found[site, MULTIPLIER] = None
    fed, bare = _activations(anatomy)
    for name in fed:
        if site := sites.of(name):
            found[site, OUTPUT_BIAS] = None
    found.update(dict.fromkeys((module, INPUT_BIAS) for module in bare))
    notes = []
    if missing:
        notes.append(f"no scalars beside weights that no called module of their own holds: {', '.join(missing)}")
    return Placement(tuple(found), tuple(notes))


class _Sites:
    """For each weight the module whose call uses it: the nearest called one above it, below the residual block."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._called = {call.name for call in anatomy.trace.root.walk() if call.module is not None}
        blocks = [block.call.name for block in anatomy.blocks]
        self._wide = {""}
        for block in blocks:
            while block:
                self._wide.add(block)
                block = block.rpartition(".")[0]

    def of(self, weight: str) -> str | None:
        module = weight.rpartition(".")[0]
        while module and module not in self._called:
            module = module.rpartition(".")[0]
        return None if module in self._wide else module


def _activations(anatomy: Anatomy) -> tuple[list[str], list[str]]:
    """Weights whose layer's output goes into an activation, and activation modules that no such layer feeds."""
    graph = anatomy.graph
    branches = {join.node: join.branch[-1] for block in anatomy.blocks for join in block.joins}
    consumers: Counter[Node] = Counter(operand for operands in graph.operands.values() for operand in operands)
    modules = _layers_called_once(anatomy)
    fed: dict[str, None] = {}
    bare: list[str] = []
    for node in graph.operands:
        if operation(node) not in _ACTIVATIONS or not graph.operands[node]:
            continue
        layer = _feeder(graph, node, branches, consumers)
        if layer is not None:
            fed.update(dict.fromkeys(anatomy.names[weight] for weight in graph.weights[layer]))
        elif node in modules:
            bare.append(modules[node])
    return list(fed), bare


def _layers_called_once(anatomy: Anatomy) -> dict[Node, str]:
    """By the node of their output, names of plain layers; one called in several places would share its scalar."""
    calls = list(anatomy.trace.root.walk())
    counts = Counter(call.module for call in calls)
    return {
        call.output.edge.node: call.name
        for call in calls
        if call.plain_layer and counts[call.module] == 1 and call.output is not None and call.output.edge is not None
    }


def _feeder(graph: WeightGraph, activation: Node, branches: dict[Node, Node], consumers: Counter[Node]) -> Node | None:
    """The weight layer whose output goes nowhere but through a residual sum, if any, into the activation."""
    node = graph.operands[activation][0]
    while consumers[node] == 1 and node in graph.operands:
        operands = graph.operands[node]
        if node in graph.weights:
            return node
        if node in branches:
            node = branches[node]
        elif len(operands) == 1 and operation(node) not in _ACTIVATIONS:
            node = operands[0]
        else:
            return None
    return None
