"""Code outside of all units: what it keeps, and what its layers take (a convolution's work space is measured)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from momentumnet.planner.profiles.unit import Cost, Key
from momentumnet.streams.finding.division import is_overwritten
from momentumnet.streams.tracing.calls import Call, Trace


@dataclass
class LayersOutside:
    """What layers outside of all units cost, each by itself.

    Attributes:
        kinds: by the layer's name, alone in a tuple, what tells those of one make apart.
        costs: that were measured.
    """

    kinds: dict[tuple[str, ...], object]
    costs: dict[tuple[str, ...], Cost] = field(default_factory=dict)

    def placed(self, calls: Sequence[tuple[int, Call]]) -> list[tuple[int, Cost]]:
        """The costs of calls, with their places."""
        return [(place, self.costs[call.name,]) for place, call in calls if (call.name,) in self.costs]


def layers_outside(trace: Trace, calls: Sequence[Sequence[Call]]) -> list[tuple[int, Call]]:
    """The calls of layers with matrices or kernels outside of all units, with how many of these had begun by then."""
    found = []
    for call in _outside(trace, calls):
        is_layer = not call.composite and call.takes_tensor and call.returns_tensor
        if is_layer and _has_matrix(call) and not is_overwritten(call):
            found.append((_begun(calls, call.index), call))
    return found


def glue_of(trace: Trace, calls: Sequence[Sequence[Call]]) -> dict[Key, int]:
    """What calls outside of all units keep, and how many units had begun by then."""
    kept: dict[Key, int] = {}
    for call in _outside(trace, calls):
        for key, count in zip(call.saved, call.saved_at, strict=True):
            place = _begun(calls, count)
            kept[key] = min(kept.get(key, place), place)
    return kept


def _outside(trace: Trace, calls: Sequence[Sequence[Call]]) -> Iterator[Call]:
    """The calls in no unit."""
    within = {inner for own in calls for call in own for inner in call.walk()}
    return (call for call in trace.root.walk() if call not in within)


def _begun(calls: Sequence[Sequence[Call]], count: int) -> int:
    """How many units had begun when so many calls had."""
    return sum(own[0].index < count for own in calls)


def _has_matrix(call: Call) -> bool:
    return call.module is not None and any(parameter.dim() > 1 for parameter in call.module.parameters(recurse=False))


def spaces_of(layers: Sequence[tuple[int, Cost]], units: int) -> tuple[int, ...]:
    """By place, the most that a layer takes in forward beside what it returns."""
    found = [0] * (units + 1)
    for place, cost in layers:
        found[place] = max(found[place], cost.free_peak - cost.output_bytes)
    return tuple(found)
