"""Which of the traced calls are the blocks of streams, and which runs they form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from momentumnet.streams.skip import residual_kind
from momentumnet.streams.trace import Call, Endpoint, Key

_UNLIKE_ADDITION = frozenset({"concat", "gated"})


@dataclass(frozen=True)
class Verdict:
    """Whether a call can be a block of a stream: ``entry`` and ``kind`` where it can, ``reason`` where it cannot."""

    entry: Endpoint | None = None
    kind: str | None = None
    reason: str = ""
    overwrites: bool = False

    @property
    def residual(self) -> bool:
        return self.kind is not None


class Judge:
    """Judges calls one by one and remembers the verdicts."""

    def __init__(self) -> None:
        self._verdicts: dict[Call, Verdict] = {}

    def __call__(self, call: Call) -> Verdict:
        if call not in self._verdicts:
            self._verdicts[call] = _judge(call)
        return self._verdicts[call]


def _judge(call: Call) -> Verdict:
    output = call.output
    if not call.inputs:
        return Verdict(reason="no argument of the call is a floating-point tensor")
    if output is None:
        return Verdict(reason="neither the output nor its first element is a floating-point tensor")
    if not call.keeps_shape:
        return Verdict(reason=_change(call.inputs[0], output))
    if not call.recorded_gradients:
        return Verdict(reason="the model calls it without gradients (torch.no_grad), so there is nothing to save")
    if any(entry.tensor is output.tensor and entry.key == output.key for entry in call.inputs):
        return Verdict(reason="it returns its input itself")
    if output.edge is None:
        return Verdict(reason="its output needs no gradient")
    for entry in call.inputs:
        kind = None if call.plain_layer else residual_kind(output.edge, _edge(entry), call.side_nodes)
        if kind is not None and call.overwritten:
            return Verdict(reason=_OVERWRITES, overwrites=True)
        if kind is not None:
            return Verdict(entry=entry, kind=kind)
    return Verdict(reason=_NO_SKIP)
