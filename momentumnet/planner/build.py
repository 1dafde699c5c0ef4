"""The profile of a network's training step: what its trace tells of bytes, and what its units were measured to cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from fractions import Fraction
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.planner.ending import Ending
from momentumnet.planner.flow import flow_of
from momentumnet.planner.glue import LayersOutside, glue_of, layers_outside, spaces_of
from momentumnet.planner.hollow import without_values
from momentumnet.planner.measure import measured
from momentumnet.planner.names import Names, beside_glue
from momentumnet.planner.profile import Handover, Key, Profile, Unit
from momentumnet.planner.returned import filled_by, outputs_of, returns_last
from momentumnet.planner.starts import beside_starts, with_starts
from momentumnet.planner.stream_cost import stream_profile
from momentumnet.planner.stream_profile import StreamProfile
from momentumnet.streams.calls import Call, Trace
from momentumnet.streams.discover import Discovery
from momentumnet.streams.division import follows
from momentumnet.streams.nested import tensors_in
from momentumnet.streams.timeline import Stage
from momentumnet.streams.trace import record
from momentumnet.streams.untrained import forget_untrained, untrained_nodes


def profiles_of(
    model: nn.Module,
    example_inputs: Any,
    found: Discovery,
    *,
    gammas: Sequence[Fraction],
    arithmetic: str,
    loss: Callable[[Any], Tensor] | None,
    present: bool = False,
) -> list[Profile]:
    """Measure a training step of the model, in its own mode, on the example's device, under the caller's autocast.

    Args:
        model: the network, unconverted; it is left as it was found.
        example_inputs: as `momentumnet.convert` takes them.
        found: its streams, and the parts outside that can be recomputed.
        gammas: of the streams; there is a profile for each.
        arithmetic: of the streams.
        loss: of the model's output; None for the output's own, or a sum.
        present: whether gradients of parameters are there before.
    """
    trace = record(model, example_inputs, eval_mode=False, values=False)
    forget_untrained(trace)
    stages = [stage for stage in found.timeline if not stage.repeated]
    device = device_of(model, example_inputs)
    calls = _calls_of(trace, stages)
    sizes = {key: storage.nbytes() for key, storage in trace.storages.items()} | dict.fromkeys(trace.given, 0)
    shown = any(tensor.requires_grad for tensor in trace.returned)  # not in an output of a class that hides them
    names, kinds = [stage.names for stage in stages], [_kind(own, sizes) for own in calls]
    outside = layers_outside(trace, calls)
    layers = LayersOutside({(call.name,): _kind([call], sizes) for _, call in outside})
    watched = Names()
    costs, ending = measured(
        *(model, example_inputs, names, loss, device, trace.by_forward),
        kinds=kinds,
        blocks={stage.names for stage in stages if stage.stream is not None and any(gammas)},
        present=present,
        layers=layers,
        names=watched,
    )
    named, placed = watched.of_units(trace, names, sizes), layers.placed(outside)
    ranges = [(own[0].first, own[-1].behind) for own in calls]
    flow = flow_of(_with_gradient(trace, ending), ranges, present=present, untrained=untrained_nodes(trace))
    flow = flow.with_layers([(place, cost.backward_peak - cost.parameter_bytes) for place, cost in placed])
    handed = _handed_first(calls, sizes, trace.given)
    filled, left = filled_by(trace, calls, sizes)
    units = [
        Unit(
            stage.names,
            stage.stream,
            frozenset(key for call in own for inner in call.walk() for key in inner.saved),
            _entry(own[0], sizes, number) | handed[number],
            _handover(calls, number),
            cost.leaving(flow.of_unit(number), has_backward=flow.reached[2 * number + 1]) if shown else cost,
            filled[number],
        )
        for number, (stage, own, cost) in enumerate(zip(stages, calls, costs, strict=True))
    ]
    hollow = without_values(model, example_inputs)
    step = Profile(
        tuple(units),
        (),
        sizes,
        (),
        loss=ending.cost,
        loss_held=ending.held,
        behind=ending.work,
        outputs=outputs_of(trace, sizes) | left,
        returns_last=returns_last(trace, calls),
        flow=flow,
        named=tuple(named),
        spaces=spaces_of(placed, len(units)),
        estimated=hollow,
        present=sum(flow.parameters) if present else 0,
    )
    glue = glue_of(trace, calls)
    streams = [[stream_profile(s, gamma, arithmetic, device, hollow=hollow) for s in found.streams] for gamma in gammas]
    return [_at(gamma, step, glue, own) for gamma, own in zip(gammas, streams, strict=True)]


def _at(gamma: Fraction, step: Profile, glue: Mapping[Key, int], streams: Sequence[StreamProfile]) -> Profile:
    """The step with its streams at this gamma, and its storages where they are kept: by units, and by glue."""
    sizes = dict(step.sizes)
    stand_ins: dict[Key, Key] = {}
    units = _as_streams(step.units, sizes, stand_ins) if gamma else step.units
    parts, parted = _parted(units, dict(glue))
    begun = with_starts(streams, step.units, sizes, stand_ins)
    named = beside_glue(beside_starts(step.named, stand_ins, step.units, begun), parted)
    return replace(step, units=tuple(parts), glue=parted, sizes=sizes, streams=begun, named=named)


def _handover(calls: Sequence[Sequence[Call]], number: int) -> Handover:
    """Of a unit's first call, from the last one of the unit before."""
    first = calls[number][0]
    if not number or not follows(calls[number - 1][-1], first):
        return Handover.NOTHING
    return Handover.ALL if first.alone else Handover.PART


def _with_gradient(trace: Trace, ending: Ending) -> list[Tensor]:
    """What the model returns, as far as the loss hands it a gradient; all of it where that is not known."""
    if len(ending.reached) != len(trace.returned):
        return trace.returned
    return list(compress(trace.returned, ending.reached))


def device_of(model: nn.Module, example_inputs: Any) -> torch.device:
    """Where a step runs."""
    found = (tensor.device for tensor in chain(model.parameters(), tensors_in(example_inputs)))
    return next(found, torch.device("cpu"))


def _as_streams(units: Sequence[Unit], sizes: dict[Key, int], stand_ins: dict[Key, Key]) -> list[Unit]:
    """The units, where the blocks of streams move by momentum; these fill no caches, whatever they keep.

    ``stand_ins`` get the storages that stand in the place of others.
    """
    found = _with_own_inputs(units, sizes, stand_ins)
    return [unit if unit.stream is None else replace(unit, filled=frozenset()) for unit in found]


def _with_own_inputs(units: Sequence[Unit], sizes: dict[Key, int], stand_ins: dict[Key, Key]) -> list[Unit]:
    """The units, where a momentum stream hands its blocks, and whoever comes behind it, a tensor of its own.

    In the trace a block's output is the input of the next one; in a momentum stream that is x after the step. What the
    model was given is no bytes of the step, but the first block takes it from the state. What more than two units share
    (the angles of rotary positions) is no stream.
    """
    found: list[Unit] = []
    uses = Counter(key for unit in units for key in unit.entry | unit.saved)
    for index, unit in enumerate(units):
        streams = {unit.stream, units[index - 1].stream if index else None} - {None}
        given = {key for key in unit.entry if not sizes[key]} if unit.stream is not None else set()
        if index and units[index - 1].stream == unit.stream:
            given = set()
        handed = unit.entry & units[index - 1].saved if index and streams else frozenset()
        shared = {key for key in handed if uses[key] <= 2} | given
        own = {key: -1 - len(units) - len(sizes) - number for number, key in enumerate(shared)}
        sizes.update({new: sizes[key] or unit.cost.output_bytes for key, new in own.items()})
        stand_ins.update(own)
        entry, saved = (frozenset(own.get(key, key) for key in keys) for keys in (unit.entry, unit.saved))
        found.append(replace(unit, entry=entry, saved=saved))
    return found


def _parted(units: Sequence[Unit], glue: dict[Key, int]) -> tuple[list[Unit], tuple[tuple[int, frozenset[Key]], ...]]:
    """The units without what glue keeps anyway, and glue with what units far from one another need.

    What a unit saves, too, is there until its backward: glue keeps it from that unit on.
    """
    places: dict[Key, list[int]] = {}
    savers: dict[Key, int] = {}
    for index, unit in enumerate(units):
        for key in unit.saved | unit.entry:
            places.setdefault(key, []).append(index)
        for key in unit.saved:
            savers.setdefault(key, index)
    for key, used in places.items():
        if key in glue or used[-1] - used[0] > 1:
            glue[key] = min(glue.get(key, len(units)), savers.get(key, used[0] + 1))
    by_place: dict[int, set[Key]] = {}
    for key, place in glue.items():
        by_place.setdefault(place, set()).add(key)
    parted = [replace(unit, saved=unit.saved - glue.keys(), entry=unit.entry - glue.keys()) for unit in units]
    return parted, tuple((place, frozenset(keys)) for place, keys in sorted(by_place.items()))


def _kind(own: Sequence[Call], sizes: Mapping[Key, int]) -> object:
    """What tells calls of the same make, on arguments of the same shapes, apart: what they return and keep."""
    return tuple(
        (
            None if call.output is None else (call.output.shape, call.output.dtype),
            tuple(sorted(sizes[key] for inner in call.walk() for key in inner.saved)),
        )
        for call in own
    )


def _calls_of(trace: Trace, stages: Sequence[Stage]) -> list[list[Call]]:
    """The calls of each stage: of a block that a stream calls several times one after the other.

    Raises:
        ConversionError: there is none.
    """
    by_name: dict[str, list[Call]] = {}
    for call in trace.root.walk():
        by_name.setdefault(call.name, []).append(call)
    missing = [name for stage in stages for name in stage.names if name not in by_name]
    if missing:
        raise ConversionError(
            f"{quoted(missing)} was not called in a pass in training mode: blocks dropped at "
            "random have no plan. Plan with model.eval(), or with layer drop turned off, or convert without a budget"
        )
    times = Counter(name for stage in stages for name in stage.names)
    return [[by_name[name].pop(0) if times[name] > 1 else by_name[name][0] for name in stage.names] for stage in stages]


def _handed_first(calls: Sequence[Sequence[Call]], sizes: dict[Key, int], given: Set[Key]) -> list[frozenset[Key]]:
    """For each stage the arguments that nobody keeps, and no stage before was given: a recompute would keep them.

    But for those that the model was ``given``, which its caller holds.
    """
    found = []
    for own in calls:
        handed = own[0].handed.items()
        new = {key: storage.nbytes() for key, storage in handed if key not in sizes and key not in given}
        sizes.update(new)
        found.append(frozenset(new))
    return found


def _entry(call: Call, sizes: dict[Key, int], number: int) -> frozenset[Key]:
    """The storages of a unit's arguments; a number of its own for one that nobody else keeps."""
    if call.entered or call.handed:
        return frozenset(call.entered)
    sizes[-1 - number] = sum(_endpoint_bytes(end.shape, end.dtype) for end in call.inputs[:1])
    return frozenset({-1 - number})


def _endpoint_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
