"""The residual test: does a block's input reach its output around the block's work?

The test reads the autograd graph between the two. A residual block has a path from its output back to its input
that meets no matrix product, convolution or other opaque operation, and on this path a join (an addition, or a
concatenation) whose other operand depends on the input through such an operation or through a parameter. Equal
shapes alone accept every convolution with padding; the join alone accepts a normalisation written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

Edges = tuple[tuple[Node | None, int], ...]

# What the skip path may meet, from best to worst: the kind of a block is the best path's worst operation.
_PLAIN, _REARRANGED, _SCALED, _ACTIVATED, _GATED, _NONE = range(6)
_WORDS = ("additive", "additive-rearranged", "additive-scaled", "postact", "gated")

_WORK = re.compile(
    r"conv(?!ert)|mm$|^(Mv|Addmv|Addr|Dot|Vdot|Linear|Matmul|Einsum|Inner|Outer)$|MkldnnLinear|attention|rnn|lstm|gru"
    r"|fft|trilinear|::|triangular|cholesky|inverse",
    re.IGNORECASE,
)
FUSED_SUMS = frozenset({"Addmm", "Baddbmm", "Addbmm", "Addmv", "Addr"})  # the first operand is added, not multiplied
_SUMS = frozenset({"Add", "Sub", "Rsub", "Addcmul", "Addcdiv", "Lerp", "CopySlices", "IndexAdd", "IndexPut",
                   "ScatterAdd"}) | FUSED_SUMS  # fmt: skip
_CONCATENATIONS = frozenset({"Cat", "Stack"})
_PRODUCTS = frozenset({"Mul", "Div", "Addcmul", "Addcdiv", "Lerp"})
_PASSES = frozenset({
    "Add", "Sub", "Rsub", "IndexAdd", "ScatterAdd", "Alias", "View", "UnsafeView", "ReshapeAlias", "AsStrided",
    "Permute", "Transpose", "T", "Mt", "Swapaxes", "Clone", "ToCopy", "Expand", "Squeeze", "Unsqueeze", "Unfold",
    "Detach", "SumToSize", "Neg",
}) | FUSED_SUMS  # fmt: skip
_MOVES = frozenset({
    "Cat", "Stack", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Chunk", "Unbind", "Narrow", "Roll",
    "Flip", "Index", "IndexSelect", "IndexPut", "Gather", "ConstantPadNd", "CopySlices", "AsStridedScatter",
    "SliceScatter", "PixelShuffle", "PixelUnshuffle", "Repeat", "ChannelShuffle", "NativeChannelShuffle",
})  # fmt: skip


def operation(node: Node) -> str:
    """The name of the operation behind a graph node: ``"Add"`` for ``AddBackward0``."""
    return re.sub(r"^torch::autograd::(?=\w+$)|Backward\d*$", "", node.name())


def is_work(node: Node) -> bool:
    """Whether a graph node is a matrix product, a convolution or another opaque operation."""
    return isinstance(cast(object, node), BackwardCFunction) or _WORK.search(operation(node)) is not None


@dataclass(slots=True)
class _Reach:
    """What is known of one node, looking towards the block's input.

    ``skip`` is the worst operation on the best path that meets no work, with or without a join; ``summed`` and
    ``joined`` are the same for paths with an addition or a concatenation on them whose other operand is work.
    """

    depends: bool = False
    work: bool = False
    parameter: bool = False
    skip: int = _NONE
    summed: int = _NONE
    joined: int = _NONE


_NOWHERE = _Reach()
_AT_INPUT = _Reach(depends=True, skip=_PLAIN)
_BESIDE = _Reach(depends=True)
_AT_PARAMETER = _Reach(parameter=True)


def residual_kind(
    output: GradientEdge,
    stream: GradientEdge,
    side_nodes: Collection[Node] = (),
    beside: Collection[GradientEdge] = (),
) -> str | None:
    """How the skip connection between ``stream`` and ``output`` is made, ``None`` where there is none.

    Args:
        output: Gradient edge of the block's output, taken when the block returned.
        stream: Gradient edge of the block's input, taken when the block was called.
        side_nodes: Nodes of the block's other tensor arguments. The search ends there.
        beside: Those of tensors that belong to one state with the input: work on them is the block's work, too.

    Returns:
        A word as :attr:`ResidualStream.kind` uses them, or ``None``.
    """
    if output.node is stream.node:
        return None
    table: dict[Node, _Reach] = {}
    related = {(edge.node, edge.output_nr) for edge in beside}

    def reach(node: Node | None, number: int) -> _Reach:
        if node is None:
            return _NOWHERE
        if (node, number) in related:
            return _BESIDE
        if node is stream.node:
            return _AT_INPUT if number == stream.output_nr else _NOWHERE
        return table.get(node, _NOWHERE)

    for node, edges in operands_first(output.node, {stream.node, *side_nodes}):
        table[node] = _combine(node, [reach(child, number) for child, number in edges])
    found = table[output.node]
    if found.summed < _NONE:
        return _WORDS[found.summed]
    return "concat" if found.joined <= _REARRANGED else None


def operands_first(root: Node, ends: set[Node]) -> list[tuple[Node, Edges]]:
    """The nodes between ``root`` and ``ends``, each once and after its operands."""
    order: list[tuple[Node, Edges]] = []
    seen: set[Node] = set()
    pending: list[tuple[Node, Edges | None]] = [(root, None)]
    while pending:
        node, edges = pending.pop()
        if edges is not None:
            order.append((node, edges))
        elif node not in seen:
            seen.add(node)
            edges = node.next_functions
            pending.append((node, edges))
            pending.extend((child, None) for child, _ in edges if child is not None and child not in ends)
    return order


def _combine(node: Node, operands: list[_Reach]) -> _Reach:
    name = operation(node)
    if name == "AccumulateGrad":
        return _AT_PARAMETER if isinstance(node.variable, nn.Parameter) else _NOWHERE  # type: ignore[attr-defined]
    found = _Reach(
        depends=any(operand.depends for operand in operands), parameter=any(operand.parameter for operand in operands)
    )
    if not found.depends:
        return found
    works = is_work(node)
    found.work = works or found.parameter or any(operand.work for operand in operands)
    if works and name not in FUSED_SUMS:
        return found
    dependent = sum(operand.depends for operand in operands)
    for position, operand in enumerate(operands[:1] if works else operands):
        rank = _rank(name, position, dependent)
        others = [other for place, other in enumerate(operands) if place != position]
        branch = any(other.work or (other.depends and works) for other in others)
        found.skip = min(found.skip, max(rank, operand.skip))
        found.summed = min(found.summed, max(rank, operand.summed))
        found.joined = min(found.joined, max(rank, operand.joined))
        if branch and name in _SUMS:
            found.summed = min(found.summed, max(rank, operand.skip))
        elif branch and name in _CONCATENATIONS:
            found.joined = min(found.joined, max(rank, operand.skip))
    return found


def _rank(name: str, position: int, dependent_operands: int) -> int:
    if name in _PASSES or (position == 0 and name in ("Addcmul", "Addcdiv")):
        return _PLAIN
    if name in _PRODUCTS:
        return _GATED if dependent_operands > (2 if name == "Lerp" else 1) else _SCALED
    return _REARRANGED if name in _MOVES else _ACTIVATED
