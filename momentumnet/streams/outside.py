"""What lies outside the streams, and what recomputing it saves: composite modules, and chains of layers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from torch import nn

from momentumnet.streams.calls import Call, Trace, storage_key


@dataclass(frozen=True)
class Outside:
    """Names of the modules and of the chains of layers, and the bytes that they would not keep any more.

    ``saving`` is what is left of them where each keeps its input, ``returned`` what the inputs take that are outputs of
    streams.
    """

    modules: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    saving: int
    returned: int


def outside_of(trace: Trace, runs: list[list[Call]]) -> Outside:
    """The maximal composite modules outside of the streams, and the chains of layers that are in none of them.

    A composite module behind a chain of layers is the chain's last call.
    """
    blocks = {call for run in runs for call in run}
    modules, layers = _walk(trace.root, blocks)
    counts = Counter(call.module for call in trace.root.walk())
    saving = trace.saved_bytes(modules) - sum(_input_bytes(call) for call in modules)
    chains = []
    for chain in _chains(layers, counts):
        saved = _saving(trace, chain, blocks.union(modules), modules)
        if 2 * saved >= _input_bytes(chain[0]):
            chains.append(chain)
            saving += saved
    for chain, module in _behind(trace, chains, modules, blocks, counts):
        chain.append(module)
        modules.remove(module)
        saving += _input_bytes(module)
    recomputed = [[call] for call in modules] + chains
    return Outside(
        tuple(dict.fromkeys(call.name for call in modules)),
        tuple(tuple(call.name for call in chain) for chain in chains),
        max(0, saving),
        _returned(trace, [run[-1] for run in runs], recomputed, blocks),
    )


def _behind(
    trace: Trace,
    chains: list[list[Call]],
    modules: list[Call],
    blocks: set[Call],
    counts: Counter[nn.Module | None],
) -> list[tuple[list[Call], Call]]:
    """The composite modules that go on with a chain: nothing but they themselves would keep what it returns."""
    kept = trace.kept_without(blocks.union(modules, *chains))
    return [
        (chain, module)
        for chain in chains
        for module in modules
        if _follows(chain[-1], module) and counts[module.module] == 1 and module.entered.isdisjoint(kept)
    ]


def _returned(trace: Trace, ends: list[Call], recomputed: list[list[Call]], blocks: set[Call]) -> int:
    """Bytes of inputs that are outputs of streams, and that nothing else keeps."""
    kept = trace.kept_without(blocks.union(*recomputed))
    total = 0
    for end in ends:
        tensor = None if end.output is None else end.output.tensor
        if tensor is not None and storage_key(tensor) not in kept:
            total += sum(_input_bytes(calls[0]) for calls in recomputed if _follows(end, calls[0]))
    return total


def _walk(root: Call, blocks: set[Call]) -> tuple[list[Call], list[Call]]:
    """The calls of maximal composite modules and of other layers outside of the blocks, each in call order."""
    within = {inner.module for block in blocks for inner in block.walk()}
    holders = {name for block in blocks for name in _ancestors(block.name)}
    modules: list[Call] = []
    layers: list[Call] = []
    pending = list(reversed([inner for call in root.children for inner in call.children]))
    while pending:
        call = pending.pop()
        eligible = call.takes_tensor and call.returns_tensor and call.name not in holders
        if eligible and call.module in within:
            continue
        if eligible and call.composite:
            modules.append(call)
            continue
        if eligible:
            layers.append(call)
        pending.extend(reversed(call.children))
    return modules, layers


def _chains(layers: list[Call], counts: Counter[nn.Module | None]) -> list[list[Call]]:
    """Runs of two or more layers that take what the one before returned: any layer, then those that are cheap.

    The first of them keeps something, for a chain lives as long as what it keeps. A module that is called several times
    is in none: which of its calls a chain holds could not be said by its name.
    """
    chains: list[list[Call]] = [[]]
    for call in layers:
        if counts[call.module] > 1:
            chains.append([])
            continue
        if chains[-1] and not (_is_cheap(call) and _follows(chains[-1][-1], call)):
            chains.append([])
        if chains[-1] or (call.saved and not _is_overwritten(call)):
            chains[-1].append(call)
    return [chain for chain in chains if len(chain) > 1]


def _saving(trace: Trace, chain: list[Call], recomputed: set[Call], modules: list[Call]) -> int:
    """Bytes that the chain alone keeps, without its input, where the calls ``recomputed`` keep nothing.

    The modules among those keep their arguments, however.
    """
    kept = trace.kept_without(recomputed.union(chain)).union(*(call.entered for call in modules))
    freed = {key for call in chain for key in call.saved} - kept
    needs_input = not chain[0].entered or not chain[0].entered <= kept
    return sum(trace.storages[key].nbytes() for key in freed) - needs_input * _input_bytes(chain[0])


def _is_cheap(call: Call) -> bool:
    """Whether the layer has no weights of two dimensions or more: no convolution, product or table."""
    return call.module is not None and all(parameter.dim() < 2 for parameter in call.module.parameters())


def _follows(before: Call, call: Call) -> bool:
    if before.output is None or before.output.edge is None or len(call.inputs) != 1:
        return False
    left, taken = before.output.edge, call.inputs[0].edge
    return taken is not None and (left.node, left.output_nr) == (taken.node, taken.output_nr)


def _is_overwritten(call: Call) -> bool:
    """Whether the layer's input is overwritten, by itself or by what comes after, so that it cannot be kept."""
    entered = call.inputs[0] if call.inputs else None
    later = entered is not None and entered.tensor is not None and entered.tensor._version != entered.key[1]
    return later or call.overwritten or bool(getattr(call.module, "inplace", False))


def _input_bytes(call: Call) -> int:
    return math.prod(call.inputs[0].shape) * call.inputs[0].dtype.itemsize if call.inputs else 0


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]
