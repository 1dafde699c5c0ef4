"""Where weights enter the autograd graph of a call: its weight layers, whatever modules or functions made them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import nn
from torch.autograd.graph import Node

from momentumnet.streams.finding.skip import FUSED_SUMS, is_work, operands_first, operation

LOOKUPS = frozenset({"Embedding", "EmbeddingBag", "Index", "IndexSelect", "Gather"})
_VIEWS = frozenset({
    "Alias", "View", "UnsafeView", "ReshapeAlias", "AsStrided", "Permute", "Transpose", "T", "Mt", "Swapaxes", "Clone",
    "ToCopy", "Expand", "Squeeze", "Unsqueeze", "Detach", "Cat", "Stack", "Slice", "Select", "Split", "SplitWithSizes",
    "UnsafeSplit", "Chunk", "Unbind", "Narrow",
})  # fmt: skip
_VECTOR_PRODUCTS = frozenset({"Mv", "Dot", "Vdot"})  # power iterations; no layer multiplies its input that way


# What a value that depends on parameters alone is: one of them, computed from them, or what layers made of one (a
# learned query), which is no weight any more.
_ITSELF, _COMPUTED, _VALUE = range(3)


class _Constant(NamedTuple):
    kind: int
    parameters: tuple[nn.Parameter, ...]


class WeightGraph:
    """The autograd graph between an output and the places where its data comes in.

    A weight layer is a matrix product, convolution or other opaque operation of data with a parameter of two or more
    dimensions. Which module holds the parameter, and whether that module is called, does not matter.

    Args:
        output: Node of the output.
        ends: Nodes at which data comes in; the graph ends there.

    Attributes:
        operands: For each node, after those it depends on, its operands that carry data; the ends are no keys.
        weights: The weight layers: for each such node the parameters that it multiplies.
        lookups: Parameters that are looked up in, with the operations that do so: embeddings, tables of positions.
        looked_up: The nodes of these operations, with what they look up in.
        computed: Parameters that a product takes only through a computation (weight normalisation).
    """

    def __init__(self, output: Node, ends: Collection[Node] = ()) -> None:
        self.output = output
        self.ends = frozenset(ends)
        self.operands: dict[Node, tuple[Node, ...]] = {}
        self.weights: dict[Node, tuple[nn.Parameter, ...]] = {}
        self.lookups: dict[nn.Parameter, str] = {}
        self.looked_up: dict[Node, tuple[nn.Parameter, ...]] = {}
        self.computed: set[nn.Parameter] = set()
        self._constants: dict[Node, _Constant] = {}
        for node, edges in operands_first(output, set(ends)):
            self._add(node, [child for child, _ in edges])

    def _add(self, node: Node, children: list[Node | None]) -> None:
        name = operation(node)
        if name == "AccumulateGrad":
            variable = node.variable  # type: ignore[attr-defined]
            if isinstance(variable, nn.Parameter):
                self._constants[node] = _Constant(_ITSELF, (variable,))
            else:
                self.operands[node] = ()
            return
        constants = [self._constants[child] for child in children if child in self._constants]
        data = tuple(child for child in children if child is not None and child not in self._constants)
        if name in LOOKUPS:
            tables = tuple(p for constant in constants if constant.kind == _ITSELF for p in constant.parameters)
            self.lookups.update((table, name) for table in tables)
            self.looked_up[node] = tables
            self.operands[node] = data
        elif (weights := self._weights_of(node, name, children)) or data:
            self.operands[node] = data
            if weights:
                self.weights[node] = weights
        else:
            kind = (
                _ITSELF if name in _VIEWS else _VALUE if is_work(node) and name not in _VECTOR_PRODUCTS else _COMPUTED
            )
            parameters = tuple(dict.fromkeys(p for constant in constants for p in constant.parameters))
            self._constants[node] = _Constant(max([kind, *(constant.kind for constant in constants)]), parameters)

    def _weights_of(self, node: Node, name: str, children: list[Node | None]) -> tuple[nn.Parameter, ...]:
        if not is_work(node) or is_attention(node) or name in _VECTOR_PRODUCTS:
            return ()
        factors = children[1:] if name in FUSED_SUMS else children
        if all(child in self._constants for child in factors):
            return ()
        found: list[nn.Parameter] = []
        for constant in (self._constants[child] for child in factors if child in self._constants):
            matrices = [parameter for parameter in constant.parameters if parameter.dim() > 1]
            if constant.kind == _COMPUTED:
                self.computed.update(matrices)
            if constant.kind != _VALUE:
                found += matrices
        return tuple(dict.fromkeys(found))

    def layers(self) -> dict[Node, frozenset[Node]]:
        """For each node the weight layers at and below it."""
        table: dict[Node, frozenset[Node]] = {}
        for node, operands in self.operands.items():
            below = frozenset[Node]().union(*(table.get(operand, frozenset()) for operand in operands))
            table[node] = below | {node} if node in self.weights else below
        return table

    def reaching(self, ends: Collection[Node]) -> set[Node]:
        """The nodes that depend on one of ``ends``, those included."""
        found = set(ends)
        for node, operands in self.operands.items():
            if not found.isdisjoint(operands):
                found.add(node)
        return found

    def nearest(self, roots: Collection[Node]) -> Iterator[Node]:
        """The weight layers that ``roots`` depend on with no other weight layer between."""
        seen: set[Node] = set()
        pending = list(roots)
        while pending:
            node = pending.pop()
            if node in seen or node not in self.operands:
                continue
            seen.add(node)
            if node in self.weights:
                yield node
            else:
                pending.extend(self.operands[node])


def is_attention(node: Node) -> bool:
    """Whether a graph node is a fused attention: of queries, keys and values, without weights of its own."""
    return "attention" in operation(node).lower()
