"""The profile of a network's training step: what its trace tells of bytes, and what its units were measured to cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.planner.measuring.at_gamma import at_gamma
from momentumnet.planner.measuring.ending import Ending
from momentumnet.planner.measuring.glue import LayersOutside, glue_of, layers_outside, spaces_of
from momentumnet.planner.measuring.hollow import without_values
from momentumnet.planner.measuring.measure import measured
from momentumnet.planner.measuring.names import Names
from momentumnet.planner.measuring.returned import filled_by, outputs_of, returns_last
from momentumnet.planner.measuring.stream_cost import stream_profile
from momentumnet.planner.profiles.flow import Flow, flow_of
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.profiles.unit import Cost, Handover, Key, Unit
from momentumnet.streams.blocks.block import ResidualStream
from momentumnet.streams.blocks.nested import tensors_in
from momentumnet.streams.finding.discover import Discovery
from momentumnet.streams.finding.division import follows
from momentumnet.streams.finding.timeline import Stage
from momentumnet.streams.finding.untrained import forget_untrained, untrained_nodes
from momentumnet.streams.tracing.calls import Call, Trace, storage_key
from momentumnet.streams.tracing.trace import record


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
    ran, device = _recorded(model, example_inputs, found), device_of(model, example_inputs)
    took = _measured(ran, model, example_inputs, loss, device, moving=any(gammas), present=present)
    hollow = without_values(model, example_inputs)
    step = _step_of(ran, took, hollow=hollow, present=present)
    glue = glue_of(ran.trace, ran.calls)
    streams = [[stream_profile(s, gamma, arithmetic, device, hollow=hollow) for s in ran.streams] for gamma in gammas]
    return [at_gamma(gamma, step, glue, own) for gamma, own in zip(gammas, streams, strict=True)]


@dataclass(frozen=True)
class _Pass:
    """A pass of the network in training, as its trace tells of it.

    Attributes:
        trace: of the pass.
        stages: the units.
        calls: those of each unit.
        sizes: bytes of the storages; what the trace has none of gets a number of its own.
        streams: of the network, one for each time that one of them runs.
    """

    trace: Trace
    stages: list[Stage]
    calls: list[list[Call]]
    sizes: dict[Key, int]
    streams: Sequence[ResidualStream]

    @property
    def names(self) -> list[tuple[str, ...]]:
        """Of the modules of each unit."""
        return [stage.names for stage in self.stages]


@dataclass(frozen=True)
class _Measured:
    """What was measured of a pass.

    Attributes:
        costs: of the units.
        ending: what comes behind the last of them.
        placed: the costs of layers outside of all units, with their places.
        named: by unit, the storages that have a name while it runs.
    """

    costs: list[Cost]
    ending: Ending
    placed: list[tuple[int, Cost]]
    named: list[frozenset[Key]]


def _recorded(model: nn.Module, example_inputs: Any, found: Discovery) -> _Pass:
    trace = record(model, example_inputs, eval_mode=False, values=False)
    forget_untrained(trace)
    stages = list(found.timeline)
    runs = sorted({(stage.run, stage.stream) for stage in stages if stage.run is not None and stage.stream is not None})
    sizes = {key: storage.nbytes() for key, storage in trace.storages.items()} | dict.fromkeys(trace.given, 0)
    return _Pass(trace, stages, _calls_of(trace, stages), sizes, [found.streams[stream] for _, stream in runs])


def _measured(
    ran: _Pass,
    model: nn.Module,
    example_inputs: Any,
    loss: Callable[[Any], Tensor] | None,
    device: torch.device,
    *,
    moving: bool,
    present: bool,
) -> _Measured:
    """Measure the units and what is around them; ``moving`` tells whether streams move by momentum at any gamma."""
    outside = layers_outside(ran.trace, ran.calls)
    layers = LayersOutside({(call.name,): _kind([call], ran.sizes) for _, call in outside})
    watched = Names()
    costs, ending = measured(
        *(model, example_inputs, ran.names, loss, device, ran.trace.by_forward),
        kinds=[_kind(own, ran.sizes) for own in ran.calls],
        blocks={stage.names for stage in ran.stages if stage.stream is not None and moving},
        present=present,
        layers=layers,
        names=watched,
    )
    return _Measured(costs, ending, layers.placed(outside), watched.of_units(ran.trace, ran.names, ran.sizes))


def _step_of(ran: _Pass, took: _Measured, *, hollow: bool, present: bool) -> Profile:
    """The step at no gamma: without its streams, and what glue keeps."""
    flow = _flow_of(ran, took, present=present)
    handed = _handed_first(ran.calls, ran.sizes, ran.trace.given)
    filled, left = filled_by(ran.trace, ran.calls, ran.sizes)
    units = _units_of(ran, took.costs, flow, handed, filled)
    return Profile(
        units,
        (),
        ran.sizes,
        (),
        loss=took.ending.cost,
        loss_held=took.ending.held,
        behind=took.ending.work,
        backward_behind=took.ending.backward,
        outputs=outputs_of(ran.trace, ran.sizes) | left,
        returns_last=returns_last(ran.trace, ran.calls),
        flow=flow,
        named=tuple(took.named),
        spaces=spaces_of(took.placed, len(units)),
        estimated=hollow,
        present=sum(flow.parameters) if present else 0,
    )


def _flow_of(ran: _Pass, took: _Measured, *, present: bool) -> Flow:
    """The gradients between the units, and what layers outside take of them."""
    ranges = [(own[0].first, own[-1].behind) for own in ran.calls]
    reached = _with_gradient(ran.trace, took.ending)
    flow = flow_of(reached, ranges, present=present, untrained=untrained_nodes(ran.trace))
    return flow.with_layers([(place, cost.backward_peak - cost.parameter_bytes) for place, cost in took.placed])


def _units_of(
    ran: _Pass,
    costs: Sequence[Cost],
    flow: Flow,
    handed: Sequence[frozenset[Key]],
    filled: Sequence[frozenset[Key]],
) -> tuple[Unit, ...]:
    """The units with what they keep, are handed first and leave in caches, and what they cost."""
    shown = any(tensor.requires_grad for tensor in ran.trace.returned)  # not in an output of a class that hides them
    ran_before: set[str] = set()
    units = []
    for number, (stage, own, cost) in enumerate(zip(ran.stages, ran.calls, costs, strict=True)):
        if shown:
            cost = cost.leaving(flow.of_unit(number), has_backward=flow.reached[2 * number + 1])
        if ran_before.issuperset(stage.names):
            cost = replace(cost, cast_bytes=0)  # autocast has them from the call before
        ran_before.update(stage.names)
        units.append(
            Unit(
                stage.names,
                stage.run,
                frozenset(key for call in own for inner in call.walk() for key in inner.saved),
                _entry(own[0], ran.sizes, number) | handed[number],
                _handover(ran.calls, number),
                cost,
                filled[number],
                _beside(ran, number, handed[number]),
            )
        )
    return tuple(units)


def _beside(ran: _Pass, number: int, handed: frozenset[Key]) -> frozenset[Key]:
    """Of a block's arguments those that its stream does not carry: nothing gives them again but who keeps them."""
    run, call = ran.stages[number].run, ran.calls[number][0]
    if run is None:
        return frozenset()
    carried = _carried(call, ran.streams[run])
    return (handed | frozenset(call.entered) if carried - {None} else handed) - carried


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


def _carried(call: Call, stream: ResidualStream) -> set[Key | None]:
    """The storages of a block's arguments that its stream carries."""
    place = stream.blocks.index(call.name)
    taken = {stream.arguments[place], *(companion.arguments[place] for companion in stream.companions)}
    return {storage_key(end.tensor) for end in call.inputs if end.tensor is not None and (end.argument or 0) in taken}


def _entry(call: Call, sizes: dict[Key, int], number: int) -> frozenset[Key]:
    """The storages of a unit's arguments; a number of its own for one that nobody else keeps."""
    if call.entered or call.handed:
        return frozenset(call.entered)
    sizes[-1 - number] = sum(_endpoint_bytes(end.shape, end.dtype) for end in call.inputs[:1])
    return frozenset({-1 - number})


def _endpoint_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
