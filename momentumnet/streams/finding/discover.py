"""Finds the residual streams of a model without being given names.

A stream is a run of two or more modules, each with a skip connection inside, where the output of one is the input
of the next and the shape stays the same. One traced forward pass finds them (:mod:`momentumnet.streams.tracing.trace`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.block import ResidualStream
from momentumnet.streams.blocks.converted import roles_laid_aside
from momentumnet.streams.blocks.wrapped import check_can_be_traced
from momentumnet.streams.finding.by_hand import check_paths
from momentumnet.streams.finding.companions import Companions, companions_of, spread_with
from momentumnet.streams.finding.elsewhere import called_elsewhere
from momentumnet.streams.finding.explain import Rejection, bypassed, explain
from momentumnet.streams.finding.outside import lone_of, outside_of
from momentumnet.streams.finding.select import Judge, select_blocks
from momentumnet.streams.finding.timeline import Stage, timeline_of
from momentumnet.streams.finding.untrained import forget_untrained, keeps_nothing
from momentumnet.streams.tracing.calls import Call, Endpoint, Trace
from momentumnet.streams.tracing.trace import record

_DIFFERENT = (
    "blocks of a stream, which hand on a second tensor in some of the passes that the model makes through them, and "
    "not in others; it is an argument like others, which each block holds"
)


@dataclass(frozen=True)
class Discovery:
    """What one traced forward pass found.

    Attributes:
        streams: The residual streams in call order.
        rejections: What was looked at and did not qualify, with the reasons, in call order.
        saved_bytes: Bytes that autograd keeps for the whole model in the trace: unique storages, parameters and
            buffers excluded.
        elsewhere_bytes: Those of them that code outside the streams' blocks keeps, whether blocks keep them too or not.
        timeline: The blocks, and the parts outside that can be recomputed, in call order.
        blocks: The blocks, those among them that stand alone and of which the recompute saves memory, in call order.
        by_forward: Names of the modules whose ``forward`` is called, and not they themselves.
    """

    streams: tuple[ResidualStream, ...]
    rejections: tuple[Rejection, ...]
    saved_bytes: int
    elsewhere_bytes: int
    timeline: tuple[Stage, ...]
    blocks: tuple[Stage, ...]
    by_forward: frozenset[str]

    @property
    def outside(self) -> tuple[str, ...]:
        """Names of the composite modules outside: the maximal ones that take and return tensors, large ones divided.

        They neither are, nor contain, nor lie inside a stream block, and do not begin by overwriting their input.
        """
        return tuple(dict.fromkeys(names[0] for names in self._parts() if len(names) == 1))

    @property
    def chains(self) -> tuple[tuple[str, ...], ...]:
        """Names of the layers outside, besides those, that are called one after the other.

        A layer, then norms, activations, pooling, where recomputing them together saves memory.
        """
        return tuple(names for names in self._parts() if len(names) > 1)

    def _parts(self) -> list[tuple[str, ...]]:
        return [stage.names for stage in self.timeline if stage.stream is None]


def find_streams(model: nn.Module, example_inputs: Any) -> list[ResidualStream]:
    """Finds the residual streams of ``model``.

    Args:
        model: Any module. It runs once, in eval mode, and is left as it was found. Of a converted one, the streams of
            the network that was converted are found.
        example_inputs: A tensor or a list (one positional argument), a tuple (the positional arguments) or a
            mapping (the keyword arguments).

    Returns:
        The streams in call order; empty where there is none.

    Raises:
        ConversionError: ``example_inputs`` is none of the above.

    Example:
        >>> import torch
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = nn.TransformerEncoder(layer, 3)
        >>> [(stream.path, len(stream)) for stream in find_streams(encoder, torch.zeros(1, 4, 8))]
        [('layers', 3)]
    """
    return list(discover(model, example_inputs).streams)


def discover(model: nn.Module, example_inputs: Any, *, streams: Sequence[str] | None = None) -> Discovery:
    """Finds the residual streams of ``model``, and says why other parts of it are none.

    Args:
        model: Any module. It runs once, in eval mode with gradients enabled, and is left as it was found: attributes
            and what stands in them, buffers, random generators. The memory of one forward pass is taken and given
            back.
        example_inputs: See :func:`find_streams`.
        streams: Container paths to restrict the search to, e.g. ``["layer3", "encoder.layers"]``: only modules
            below one of them can be blocks. ``None`` looks everywhere.

    Returns:
        The streams, the rejections and what was measured.

    Raises:
        ConversionError: A path in ``streams`` is no module of the model or holds no stream; ``example_inputs``
            is no tensor, list, tuple or mapping; or the model is wrapped for several processes already.
    """
    check_can_be_traced(model)
    names = _checked_names(model, streams)
    with roles_laid_aside(model):
        trace = record(model, example_inputs)
    judge = Judge()
    everywhere, lone, shared = _runs(trace, judge, lambda name: True)
    rejections = explain(trace.root, judge, [call for run in everywhere for call in run], shared)
    rejections += bypassed(model, trace.root)
    if names is not None:
        whole = _streams(trace, judge, everywhere, set())
        kept, lone, _ = _runs(trace, judge, lambda name: any(_below(name, path) for path in names))
        for path in names:
            if not any(_below(run[0].name, path) for run in kept):
                raise _holds_none(path, whole, rejections)
        rejections += _left_out(whole, {call.name for run in kept for call in run}, names)
        everywhere = kept
    # What can be recomputed does not go by what is trained now, as that may change in a training; the bytes do.
    outside, alone = outside_of(trace, everywhere), lone_of(trace, everywhere, lone)
    idle = forget_untrained(trace)
    found = _streams(trace, judge, everywhere, idle)
    rejections += [Rejection(stream.path, stream.blocks, reason) for stream in found for reason in stream.left]
    blocks = {call for run in everywhere for call in run}
    indices = _indices(found, everywhere)
    return Discovery(
        tuple(found),
        tuple(rejections),
        saved_bytes=trace.saved_bytes(),
        elsewhere_bytes=trace.saved_bytes_without(blocks),
        timeline=timeline_of(trace, everywhere, indices, outside, idle),
        blocks=timeline_of(trace, everywhere, indices, alone, idle),
        by_forward=trace.by_forward,
    )


def _runs(trace: Trace, judge: Judge, allowed: Callable[[str], bool]) -> tuple[list[list[Call]], list[Call], set[str]]:
    """The runs of two or more blocks, those that stand alone, and what is no block as it is called elsewhere, too."""
    shared: set[str] = set()

    def may_be_block(name: str) -> bool:
        return bool(name) and allowed(name) and name not in shared

    while True:
        blocks = select_blocks(trace.root, judge, may_be_block)
        runs = judge.runs(blocks)
        streams = [run for run in runs if len(run) > 1]
        found = called_elsewhere(trace, streams)
        if not found:
            return streams, [run[0] for run in runs if len(run) == 1], shared
        shared |= found


def _streams(trace: Trace, judge: Judge, runs: list[list[Call]], idle: set[Call]) -> list[ResidualStream]:
    """Describes the runs; runs over the same modules (a network called twice) are one stream."""
    merged: dict[tuple[str, ...], list[list[Call]]] = {}
    for run in runs:
        merged.setdefault(tuple(call.name for call in run), []).append(run)
    return [_stream(trace, judge, group, idle) for group in merged.values()]


def _indices(streams: Sequence[ResidualStream], runs: Sequence[Sequence[Call]]) -> list[int]:
    """For each run the index of its stream."""
    of_block = {block: index for index, stream in enumerate(streams) for block in stream.blocks}
    return [of_block[run[0].name] for run in runs]


def _stream(trace: Trace, judge: Judge, group: list[list[Call]], idle: set[Call]) -> ResidualStream:
    first, calls = group[0], [call for run in group for call in run]
    kinds = dict.fromkeys(judge(call).kind or "" for call in calls)
    entries = {call: judge(call).entry or call.inputs[0] for call in calls}
    beside = _beside(group, entries)
    entry = entries[first[0]]
    ends = [end for call in calls for end in (entries[call], call.output) if end is not None]
    starts = [entries[run[0]] for run in group]
    outputs: dict[Call, list[Endpoint]] = {call: [] for call in calls}
    for run, found in zip(group, beside, strict=True):
        for tensor in found.ends:
            starts.append(tensor[0][0])
            ends += [end for pair in tensor for end in pair]
            for call, (_, output) in zip(run, tensor, strict=True):
                outputs[call].append(output)
    return ResidualStream(
        path=_common_parent([call.name for call in first]),
        blocks=tuple(call.name for call in first),
        arguments=tuple(entries[call].argument or 0 for call in first),
        kind="+".join(kinds),
        shape=entry.shape,
        dtype=entry.dtype,
        magnitude=max(end.magnitude for end in ends),
        start_magnitude=max(start.magnitude for start in starts),
        spread=max(spread_with(call, outputs[call]) for call in calls),
        saved_bytes=trace.saved_bytes(calls),
        companions=beside[0].carried,
        left=beside[0].reasons,
        untrained=all(keeps_nothing(call, idle) for call in calls),
    )


def _beside(group: list[list[Call]], entries: Mapping[Call, Endpoint]) -> list[Companions]:
    """What is handed on beside each run; nothing is carried where runs over the same blocks differ."""
    found = [companions_of(run, [entries[call] for call in run]) for run in group]
    if all(other.places == found[0].places for other in found):
        return found
    return [Companions(reasons=(*found[0].reasons, _DIFFERENT)) for _ in found]


def _common_parent(names: list[str]) -> str:
    parents = [name.split(".")[:-1] for name in names]
    common = []
    for parts in zip(*parents, strict=False):  # ends with the shortest
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _below(name: str, path: str) -> bool:
    return path == "" or name.startswith(path + ".")


def _checked_names(model: nn.Module, streams: Sequence[str] | None) -> list[str] | None:
    if streams is None:
        return None
    check_paths("streams", streams)
    existing = {name for name, _ in model.named_modules()}
    for name in streams:
        if name not in existing:
            depth = name.count(".")
            near = sorted(other for other in existing if other and other.count(".") <= depth)
            raise ConversionError(
                f"streams names {name!r}, which is no module of {type(model).__name__}; at this depth there are: "
                + ", ".join(near)
            )
    return list(streams)


def _holds_none(path: str, found: list[ResidualStream], rejections: list[Rejection]) -> ConversionError:
    reasons = [
        f"  {', '.join(rejection.blocks)}: {rejection.reason}"
        for rejection in rejections
        if any(block == path or _below(block, path) or _below(path, block) for block in rejection.blocks)
    ]
    existing = ", ".join(sorted({repr(stream.path) for stream in found})) or "none"
    return ConversionError(
        f"{path!r} holds no residual stream. Streams were found at: {existing}. What was looked at there:\n"
        + ("\n".join(reasons) or "  no call of two or more modules below it")
    )


def _left_out(found: list[ResidualStream], named: set[str], names: list[str]) -> list[Rejection]:
    return [
        Rejection(stream.path, stream.blocks, f"a stream, but streams={names!r} does not name it")
        for stream in found
        if named.isdisjoint(stream.blocks)
    ]
