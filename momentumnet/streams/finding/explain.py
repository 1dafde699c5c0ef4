"""Why the parts of a model outside the streams are no streams."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby, permutations

from torch import nn
from torch.autograd.graph import GradientEdge, Node

from momentumnet.streams.finding.select import CONCATENATION, NO_SKIP, OVERWRITES, Judge
from momentumnet.streams.finding.skip import operation
from momentumnet.streams.tracing.calls import Call
from momentumnet.streams.tracing.forwards import uncalled_siblings

_SKIP_IN_PARENT = (
    "the skip connections are written in {frame}, as in x = x + block(x), so no module contains one; move each sum "
    "into a module, e.g. class Residual(nn.Module) with forward(self, x): return x + self.branch(x), and call that"
)
_PARENT_BEGINS = _SKIP_IN_PARENT.partition("{")[0]
_CALLED_ELSEWHERE = (
    "a residual block, but its module is called in another place or order, too, and each of its calls would go through "
    "the stream; give each place a module of its own"
)
_OTHER_KIND = (
    "a residual block whose skip is {own}, while the block before or after it that passes it the same tensor makes its "
    "skip by {other}; a stream needs two blocks that do it in one way"
)
_BYPASSED = (
    "what they hold is called, and not they themselves, so that neither hooks nor a stream would see them; call the "
    "modules, as in x = layer(x)"
)
ALONE = "a residual block, but no residual block before or after it passes it the same tensor; a stream needs two"
_RESIDUAL = "a residual block"  # so begins each reason of one that is in no stream


@dataclass(frozen=True)
class Rejection:
    """Calls that were looked at and are no stream, and why.

    Attributes:
        path: The module that calls them.
        blocks: Their dotted names, in call order.
        reason: Why they do not qualify and, where there is a remedy, what it is.
    """

    path: str
    blocks: tuple[str, ...]
    reason: str

    @property
    def is_residual(self) -> bool:
        """Whether they are residual blocks all the same."""
        return self.reason.startswith(_RESIDUAL)

    @property
    def has_skip(self) -> bool:
        """Whether there is a skip around them, or may be, of which only the form does not fit."""
        return self.is_residual or self.reason == _BYPASSED or self.reason.startswith(_PARENT_BEGINS)


def explain(root: Call, judge: Judge, blocks: list[Call], shared: Collection[str] = ()) -> list[Rejection]:
    """Says why the calls outside ``blocks`` are no stream blocks.

    Args:
        root: The frame above the model's call.
        judge: The verdicts on single calls.
        blocks: All blocks of the streams found.
        shared: Names of the modules that are called outside of a stream, too.

    Returns:
        The rejections in call order, neighbours with one reason together.
    """
    chosen = set(blocks)
    rejections: list[Rejection] = []
    pending = [(call, True) for call in reversed(root.children)]
    while pending:
        frame, opened = pending.pop()
        rejections += _parent_skips(frame, judge, is_model=frame in root.children)
        reasons = [
            (call, _reason(call, frame, judge, chosen, shared, opened)) for call in frame.children if call not in chosen
        ]
        for reason, calls in groupby((pair for pair in reasons if pair[1]), key=lambda pair: pair[1]):
            rejections.append(Rejection(frame.name, tuple(call.name for call, _ in calls), reason))
        for call, _ in reversed(reasons):
            pending.append((call, opened and (call.plain_container or _holds(call, chosen))))
    return rejections


def bypassed(model: nn.Module, root: Call) -> list[Rejection]:
    """Finds siblings of one class that are not called themselves, while what they hold is."""
    called = {call.module for call in root.walk()}
    found = [
        [name for name in names if not called.isdisjoint(model.get_submodule(name).modules())]
        for names in uncalled_siblings(model, called)
    ]
    return [Rejection(names[0].rpartition(".")[0], tuple(names), _BYPASSED) for names in found if len(names) > 1]


def _reason(call: Call, frame: Call, judge: Judge, chosen: set[Call], shared: Collection[str], opened: bool) -> str:
    """Why ``call`` is no block; empty where that tells nothing (inside other rejected modules, for activations)."""
    if _holds(call, chosen):
        return ""
    verdict = judge(call)
    if verdict.kind is not None:
        return _CALLED_ELSEWHERE if call.name in shared else _without_company(call, frame, judge)
    if verdict.reason == OVERWRITES:
        inside = any(judge(inner).reason == OVERWRITES for inner in call.walk() if inner is not call)
        return "" if inside else OVERWRITES
    telling = call.composite or (call.refusal and not call.plain_layer)
    if opened and (telling or (verdict.reason == NO_SKIP and _weighted(call) and _linked(call, frame))):
        return verdict.reason
    return ""


def _without_company(call: Call, frame: Call, judge: Judge) -> str:
    """Why a residual block stands in no run."""
    joins = judge(call).kind == CONCATENATION
    for other in frame.children:
        if (
            judge(other).kind is not None
            and (judge(other).kind == CONCATENATION) != joins
            and _passes(call, other, judge)
        ):
            own, its = ("a concatenation", "an addition") if joins else ("an addition", "a concatenation")
            return _OTHER_KIND.format(own=own, other=its)
    return ALONE


def _passes(call: Call, other: Call, judge: Judge) -> bool:
    """Whether one of two residual blocks takes what the other returns."""
    pairs = ((call, judge(other).entry), (other, judge(call).entry))
    return any(entry and before.output and before.output.key == entry.key for before, entry in pairs)


def _holds(call: Call, chosen: set[Call]) -> bool:
    return any(inner in chosen for inner in call.walk())


def _weighted(call: Call) -> bool:
    return call.module is not None and any(parameter.dim() > 1 for parameter in call.module.parameters())


def _linked(call: Call, frame: Call) -> bool:
    """Whether a sibling that keeps the shape takes what ``call`` returns, or the other way round."""
    siblings = [other for other in frame.children if other is not call and other.keeps_shape]
    returned = {other.output.key for other in siblings if other.output is not None}
    taken = {entry.key for other in siblings for entry in other.inputs}
    return any(entry.key in returned for entry in call.inputs) or (call.output is not None and call.output.key in taken)


def _parent_skips(frame: Call, judge: Judge, *, is_model: bool) -> list[Rejection]:
    """Finds sums of a sibling's input and a sibling's output that the frame's own forward makes.

    One such sum is every hand-written residual block, and two are a transformer layer, so a frame that is a
    residual block itself is reported from three on.
    """
    taken = {_place(entry.edge) for call in frame.children for entry in call.inputs if entry.edge}
    returned = {_place(call.output.edge): call.name for call in frame.children if call.output and call.output.edge}
    ends = [entry for call in frame.children for entry in call.inputs] + ([frame.output] if frame.output else [])
    branches: dict[Node, str] = {}
    for edge in (end.edge for end in ends if end.edge):
        node = _past_aliases(edge.node)
        if operation(node) not in ("Add", "Sub") or node in branches:
            continue
        operands = [place for place in node.next_functions if place[0] is not None]
        for skip, branch in permutations(operands, 2):
            if skip in taken and branch in returned:
                branches[node] = returned[branch]
    if len(branches) < (2 if is_model or judge(frame).kind is None else 3):
        return []
    reason = _SKIP_IN_PARENT.format(frame=_describe(frame))
    return [Rejection(frame.name, tuple(dict.fromkeys(branches.values())), reason)]


def _place(edge: GradientEdge) -> tuple[Node | None, int]:
    return edge.node, edge.output_nr


def _past_aliases(node: Node) -> Node:
    while operation(node) == "Alias" and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node


def _describe(frame: Call) -> str:
    return f"{type(frame.module).__name__}.forward" + (f" (module {frame.name!r})" if frame.name else "")
