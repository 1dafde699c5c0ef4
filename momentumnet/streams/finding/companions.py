"""Tensors that blocks hand on beside their stream: those that change as a stream does are carried with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from momentumnet.core.scaling.spread import spread_of
from momentumnet.core.tensors.packed import Companion
from momentumnet.streams.finding.select import CONCATENATION
from momentumnet.streams.finding.skip import residual_kind
from momentumnet.streams.tracing.calls import Call, Endpoint, Key


@dataclass(frozen=True)
class Companions:
    """What was found beside a run of blocks.

    Attributes:
        carried: what its stream carries, too.
        ends: the same as it entered and left each block.
        reasons: why others are not carried.
    """

    carried: tuple[Companion, ...] = ()
    ends: tuple[tuple[tuple[Endpoint, Endpoint], ...], ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def places(self) -> list[tuple[tuple[int | str, ...], tuple[int, ...]]]:
        """Where the blocks take and return what is carried."""
        return [(companion.arguments, companion.outputs) for companion in self.carried]


@dataclass(frozen=True)
class _Side:
    """A tensor as one block takes it, and returns it in a ``place`` beside the stream; how its skip is made."""

    entry: Endpoint
    place: int
    output: Endpoint
    kind: str | None


def companions_of(run: Sequence[Call], entries: Sequence[Endpoint]) -> Companions:
    """Looks beside a run of blocks.

    Args:
        run: the blocks.
        entries: what they take as the stream.
    """
    carried, ends, reasons = [], [], []
    continued: set[Key] = set()
    for place, call in enumerate(run):
        for first in _sides(call, entries[place]):
            if first.entry.key in continued:
                continue
            sides, reason = _followed(first, run[place:], entries[place:])
            continued |= {side.output.key for side in sides}
            if place and not reason:
                reason = f"the blocks before {call.name!r} do not hand it on, as all blocks of its stream would have to"
            if not reason:
                carried.append(_companion(sides))
                ends.append(tuple((side.entry, side.output) for side in sides))
            elif len(sides) > 1 or (not place and first.kind is not None):
                reasons.append(_told(first, reason))
    return Companions(tuple(carried), tuple(ends), tuple(reasons))


def _companion(sides: Sequence[_Side]) -> Companion:
    arguments = tuple(side.entry.argument or 0 for side in sides)
    return Companion(arguments, tuple(side.place for side in sides), sides[0].entry.shape)


def spread_with(call: Call, outputs: Sequence[Endpoint]) -> float:
    """The largest magnitude over a typical one of all that a block returns: of the tensor where that is most."""
    found = [(call.spread, 0.0 if call.output is None else call.output.magnitude)]
    found += [
        (spread_of(end.tensor, end.magnitude) if end.tensor is not None and end.magnitude else 1.0, end.magnitude)
        for end in outputs
    ]
    largest = max(magnitude for _, magnitude in found)
    return max((spread * largest / magnitude for spread, magnitude in found if magnitude), default=1.0)


def _followed(first: _Side, run: Sequence[Call], entries: Sequence[Endpoint]) -> tuple[list[_Side], str]:
    """The tensor from block to block, as far as it is handed on, and why it is not carried; empty where it is."""
    sides = [first]
    for (before, call), entry in zip(pairwise(run), entries[1:], strict=True):
        found = [side for side in _sides(call, entry) if side.entry.key == sides[-1].output.key]
        if not found:
            return sides, (
                f"block {call.name!r} does not take the very tensor that block {before.name!r} returned, in the shape "
                "in which it returns one (something between them makes another one of it, or they do not hand it on)"
            )
        sides.append(found[0])
    for side, call, entry in zip(sides, run, entries, strict=True):
        reason = _refusal(side, call, entry)
        if reason:
            return sides, reason
    return sides, ""


def _refusal(side: _Side, call: Call, entry: Endpoint) -> str:
    """Why one block's stream cannot carry the tensor; empty where it can."""
    if side.entry.argument in call.rewritten:
        return f"block {call.name!r} overwrites it in place"
    if side.kind is None:
        return f"block {call.name!r} has no skip connection for it: it is not returned as the sum of itself and work"
    if side.entry.dtype != entry.dtype:
        return f"it is of {side.entry.dtype}, the stream of {entry.dtype}, and one state has one type"
    if side.entry.device != entry.device:
        return f"it lies on {side.entry.device}, the stream on {entry.device}"
    return ""


def _told(side: _Side, reason: str) -> str:
    return (
        f"blocks of a stream, which hand on a second tensor of shape {side.entry.shape} (argument "
        f"{side.entry.argument!r}, place {side.place} of what they return). It is not carried with the stream, but an "
        f"argument like others, which each block holds: {reason}"
    )


def _sides(call: Call, stream: Endpoint) -> Iterator[_Side]:
    """What the call takes and returns beside its stream: for each output the argument with a skip, else any alike."""
    seen = {None if call.output is None else call.output.key}
    for place, output in call.beside:
        alike = [entry for entry in call.taken if entry.is_like(output) and entry.key != stream.key]
        if output.key in seen or not alike or any(entry.key == output.key for entry in alike):
            continue
        seen.add(output.key)
        found = [_Side(entry, place, output, _kind(call, entry, output, stream)) for entry in alike]
        yield next((side for side in found if side.kind is not None), found[0])


def _kind(call: Call, entry: Endpoint, output: Endpoint, stream: Endpoint) -> str | None:
    """How the tensor's skip is made around work on it or on the stream."""
    if entry.edge is None or output.edge is None or stream.edge is None:
        return None
    kind = residual_kind(output.edge, entry.edge, call.side_nodes, [stream.edge])
    return None if kind == CONCATENATION else kind
