"""What lies outside the streams: modules that are recomputed whole, large ones divided into what they call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from momentumnet.streams.tracing.calls import Call, Trace

# A module is divided where at least this part of what the network keeps is less there at once in backward, when the
# module's parts are recomputed one by one.
_WORTH = 1 / 8


def outside_calls(
    trace: Trace, blocks: set[Call], counts: Mapping[nn.Module | None, int]
) -> tuple[list[Call], list[Call]]:
    """The calls of modules and of layers outside of the blocks, each in call order; see `_Division.is_whole`.

    The modules are the largest ones, but for those that hold blocks, those that overwrite what they take, and those
    that keep a large part of what the network keeps: recomputed as one, that would all be there again in backward.
    ``counts`` says how often each module is called.
    """
    division = _Division(trace, blocks, counts)
    calls = [call for outer in trace.root.children for call in division.within(outer.children)]
    return [call for call in calls if division.is_whole(call)], [call for call in calls if not division.is_whole(call)]


class _Division:
    """Of one trace."""

    def __init__(self, trace: Trace, blocks: set[Call], counts: Mapping[nn.Module | None, int]) -> None:
        self.trace, self.counts = trace, counts
        self.of_blocks = {inner.module for block in blocks for inner in block.walk()}
        self.holders = {name for block in blocks for name in _ancestors(block.name)}
        self.worth = _WORTH * trace.saved_bytes()

    def within(self, calls: Iterable[Call]) -> list[Call]:
        """The composite modules and the layers among the calls, and in those that are divided."""
        found: list[Call] = []
        for call in calls:
            eligible = call.takes_tensor and call.returns_tensor and call.name not in self.holders
            if eligible and call.module in self.of_blocks:
                continue
            if eligible and self.is_whole(call) and not is_overwritten(call):
                found += self._parts_of(call) or [call]
                continue
            found += [call] * (eligible and not call.composite) + self.within(call.children)
        return found

    def is_whole(self, call: Call) -> bool:
        """Whether it may be recomputed by itself: composite modules, and others that keep much besides their input.

        Those have weights, and operations of their own between them; a recurrent network of torch is one, too.
        """
        if call.composite:
            return True
        own = (not call.plain_layer or isinstance(call.module, nn.RNNBase)) and not _is_cheap(call)
        return own and not is_overwritten(call) and self.trace.saved_bytes([call]) > 2 * input_bytes(call)

    def _parts_of(self, call: Call) -> list[Call]:
        """What a large module is divided into; nothing where it is not."""
        kept = self.trace.saved_bytes([call])
        if kept <= self.worth:
            return []
        inner = self.within(call.children)
        if any(self.is_whole(part) and self.counts[part.module] > 1 for part in inner):
            return []  # by itself it could not be recomputed as each of its calls was
        parts = [[part] for part in inner if self.is_whole(part)]
        parts += chains_of([layer for layer in inner if not self.is_whole(layer)], self.counts)
        sizes = [self.trace.saved_bytes(part) for part in parts]
        left = kept - sum(max(0, size - input_bytes(part[0])) for size, part in zip(sizes, parts, strict=True))
        return inner if kept - left - max(sizes, default=0) >= self.worth else []


def chains_of(layers: Sequence[Call], counts: Mapping[nn.Module | None, int]) -> list[list[Call]]:
    """Runs of two or more layers that take what the one before returned: any layer, then those that are cheap.

    The first of them keeps something, for a chain lives as long as what it keeps. A module that is called several times
    (``counts``) is in none: which of its calls a chain holds could not be said by its name.
    """
    chains: list[list[Call]] = [[]]
    for call in layers:
        if counts[call.module] > 1:
            chains.append([])
            continue
        if chains[-1] and not (_is_cheap(call) and hands_on(chains[-1][-1], call)):
            chains.append([])
        if chains[-1] or (call.saved and not is_overwritten(call)):
            chains[-1].append(call)
    return [chain for chain in chains if len(chain) > 1]


def hands_on(before: Call, call: Call) -> bool:
    """Whether what the call before returned, one tensor, is all that a call takes."""
    return before.returns_alone and call.alone and follows(before, call)


def follows(before: Call, call: Call) -> bool:
    """Whether the one tensor that can be the stream in a call is what the call before returned."""
    if before.output is None or before.output.edge is None or len(call.inputs) != 1:
        return False
    left, taken = before.output.edge, call.inputs[0].edge
    return taken is not None and (left.node, left.output_nr) == (taken.node, taken.output_nr)


def input_bytes(call: Call) -> int:
    """Of the tensor that can be the stream."""
    return math.prod(call.inputs[0].shape) * call.inputs[0].dtype.itemsize if call.inputs else 0


def _is_cheap(call: Call) -> bool:
    """Whether the layer has no weights of two dimensions or more: no convolution, product or table."""
    return call.module is not None and all(parameter.dim() < 2 for parameter in call.module.parameters())


def is_overwritten(call: Call) -> bool:
    """Whether the input is overwritten, by itself or by what comes after, so that it cannot be kept.

    A first layer may do so in training alone (a classifier's ``Dropout(inplace=True)``).
    """
    entered = call.inputs[0] if call.inputs else None
    later = entered is not None and entered.tensor is not None and entered.tensor._version != entered.key[1]
    modules = () if call.module is None else call.module.modules()
    layers = (module for module in modules if next(module.children(), None) is None)
    return later or call.spoils or bool(getattr(next(layers, None), "inplace", False))


def _ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts)))
