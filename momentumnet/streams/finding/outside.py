"""What lies outside the streams, and what recomputing it saves: composite modules, and chains of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from momentumnet.streams.finding.division import (
    chains_of,
    follows,
    hands_on,
    input_bytes,
    is_overwritten,
    outside_calls,
)
from momentumnet.streams.tracing.calls import Call, Trace, storage_key


@dataclass(frozen=True)
class Part:
    """Calls that are recomputed together: one of a composite module, or those of a chain of layers.

    ``saving`` are the bytes that are not kept any more where only the first call's input is, ``returned`` those of that
    input where it is the output of a stream.
    """

    calls: tuple[Call, ...]
    saving: int
    returned: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the modules."""
        return tuple(call.name for call in self.calls)


def outside_of(trace: Trace, runs: list[list[Call]]) -> list[Part]:
    """The composite modules outside of the streams, then the chains of layers that are in none of them.

    A composite module behind a chain of layers is the chain's last call.
    """
    blocks = {call for run in runs for call in run}
    counts = Counter(call.module for call in trace.root.walk())
    modules, layers = outside_calls(trace, blocks, counts)
    alone = _saving_of_modules(trace, modules)
    chained: list[tuple[list[Call], int]] = []
    for chain in chains_of(layers, counts):
        saved = _saving(trace, chain, blocks.union(modules), modules)
        if 2 * saved >= input_bytes(chain[0]):
            chained.append((chain, saved))
    behind = dict(_behind(trace, [chain for chain, _ in chained], modules, blocks, counts))
    parts = [Part((call,), alone[call]) for call in modules if call not in behind.values()]
    for index, (chain, saved) in enumerate(chained):
        module = behind.get(index)
        if module is None:
            parts.append(Part(tuple(chain), saved))
        else:
            parts.append(Part((*chain, module), saved + alone[module] + input_bytes(module)))
    return _with_returned(trace, parts, [run[-1] for run in runs], blocks)


def lone_of(trace: Trace, runs: list[list[Call]], lone: list[Call]) -> list[Part]:
    """The residual blocks in no stream of which the recompute saves memory: each is a stream of one.

    One that keeps more than half of what the network keeps would all be there again in backward.
    """
    possible = [call for call in lone if call.takes_tensor and call.returns_tensor and not is_overwritten(call)]
    blocks = {call for run in runs for call in run}
    kept, most = trace.kept_without(blocks.union(possible)), trace.saved_bytes() // 2
    saving = {call: _saving_beside(trace, call, kept) for call in possible}
    parts = [Part((call,), saved) for call, saved in saving.items() if 0 < saved <= most]
    return _with_returned(trace, parts, [run[-1] for run in runs], blocks)


def _saving_of_modules(trace: Trace, modules: list[Call]) -> dict[Call, int]:
    """For each module the bytes that it keeps and none of those before it does, beside its input."""
    seen: set[int] = set()
    saving = {}
    for call in modules:
        keys = {key for inner in call.walk() for key in inner.saved} - seen
        seen |= keys
        saving[call] = sum(trace.storages[key].nbytes() for key in keys) - input_bytes(call)
    return saving


def _behind(
    trace: Trace,
    chains: list[list[Call]],
    modules: list[Call],
    blocks: set[Call],
    counts: Counter[nn.Module | None],
) -> Iterator[tuple[int, Call]]:
    """By the chain's number, the composite module behind it that alone would keep what the chain returns."""
    kept = trace.kept_without(blocks.union(modules, *chains))
    for index, chain in enumerate(chains):
        following = [module for module in modules if hands_on(chain[-1], module)]
        if len(following) == 1 and counts[following[0].module] == 1 and following[0].entered.isdisjoint(kept):
            yield index, following[0]


def _with_returned(trace: Trace, parts: list[Part], ends: list[Call], blocks: set[Call]) -> list[Part]:
    """The parts with the bytes of inputs that are outputs of streams, and that nothing else keeps."""
    kept = trace.kept_without(blocks.union(*(part.calls for part in parts)))
    given = [
        end
        for end in ends
        if end.output and end.output.tensor is not None and storage_key(end.output.tensor) not in kept
    ]
    return [
        replace(part, returned=input_bytes(part.calls[0]) * any(follows(end, part.calls[0]) for end in given))
        for part in parts
    ]


def _saving(trace: Trace, chain: list[Call], recomputed: set[Call], modules: list[Call]) -> int:
    """Bytes that the chain alone keeps, without its input, where the calls ``recomputed`` keep nothing.

    The modules among those keep their arguments, however.
    """
    kept = trace.kept_without(recomputed.union(chain)).union(*(call.entered for call in modules))
    return _freed(trace, {key for call in chain for key in call.saved}, chain[0], kept)


def _saving_beside(trace: Trace, call: Call, kept: set[int]) -> int:
    """Bytes that a module keeps, without its input, beside what is ``kept`` anyway."""
    return _freed(trace, {key for inner in call.walk() for key in inner.saved}, call, kept)


def _freed(trace: Trace, keys: set[int], first: Call, kept: set[int]) -> int:
    """Bytes of what is saved and not ``kept`` anyway, less those of the input from which it is recomputed."""
    needs_input = not first.entered or not first.entered <= kept
    return sum(trace.storages[key].nbytes() for key in keys - kept) - needs_input * input_bytes(first)
