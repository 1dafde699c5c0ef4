"""What a model returns of what its units compute: it stays to the end of the step."""

from __future__ import annotations

from collections.abc import Sequence

from momentumnet.planner.profiles.unit import Key
from momentumnet.streams.tracing.calls import Call, Trace, storage_key


def outputs_of(trace: Trace, sizes: dict[Key, int]) -> frozenset[Key]:
    """The storages of what the model returns; a number of its own for one that nothing in the model keeps."""
    known = [(storage_key(tensor), tensor) for tensor in trace.returned]
    storages = {key: tensor.untyped_storage().nbytes() for key, tensor in known if key is not None}
    lowest = min(sizes, default=0)
    own = {key: lowest - number for number, key in enumerate(storages, start=1) if key not in sizes}
    sizes.update({number: storages[key] for key, number in own.items()})
    return frozenset(own.get(key, key) for key in storages)


def returns_last(trace: Trace, calls: Sequence[Sequence[Call]]) -> bool:
    """Whether the model returns what its last part does."""
    end = calls[-1][-1].output if calls else None
    return end is not None and end.edge is not None and end.edge.node in {tensor.grad_fn for tensor in trace.returned}


def filled_by(
    trace: Trace, calls: Sequence[Sequence[Call]], sizes: dict[Key, int]
) -> tuple[list[frozenset[Key]], frozenset[Key]]:
    """For each stage what it leaves in caches that the model returns, and what code outside of all leaves there."""
    found: list[set[Key]] = [set() for _ in calls]
    left: set[Key] = set()
    for tensor in trace.cached:
        key = storage_key(tensor)
        if key is None or key in trace.given:
            continue
        sizes.setdefault(key, tensor.untyped_storage().nbytes())
        made = -1 if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()
        by = (keys for own, keys in zip(calls, found, strict=True) if own[0].first <= made < own[-1].behind)
        next(by, left).add(key)
    return list(map(frozenset, found)), frozenset(left)
