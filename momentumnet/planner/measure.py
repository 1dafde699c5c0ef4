"""Measuring a training step: the model runs once, and each unit by itself when its turn comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ConversionError, MomentumNetError
from momentumnet.listing import listed
from momentumnet.memory import MemoryReport
from momentumnet.planner.alone import (
    check_not_nested,
    without_history,
)
from momentumnet.planner.ending import Ending, ending_of, measured_behind, nth
from momentumnet.planner.glue import LayersOutside
from momentumnet.planner.hollow import HollowMeasures, hollowed, without_values
from momentumnet.planner.names import Names
from momentumnet.planner.profile import Cost
from momentumnet.planner.unit_cost import Measures
from momentumnet.recompute.own_gradients import is_about_hooks
from momentumnet.streams.forwards import forwards_as_calls
from momentumnet.streams.guard import left_as_found
from momentumnet.streams.nested import copied, tensors_in
from momentumnet.streams.trace import call_with_example


class _NothingKeptError(MomentumNetError):
    """The model takes a gradient in its forward."""


def measured(
    model: nn.Module,
    example_inputs: Any,
    units: Sequence[Sequence[str]],
    loss: Callable[[Any], Tensor] | None,
    device: torch.device,
    by_forward: Collection[str] = (),
    *,
    kinds: Sequence[object] | None = None,
    blocks: Set[tuple[str, ...]] = frozenset(),
    present: bool = False,
    layers: LayersOutside | None = None,
    names: Names | None = None,
) -> tuple[list[Cost], Ending]:
    """The costs of the units, each measured when its first module is called, and that of the loss.

    The model runs once, in its own mode, without keeping what backward would need (but where it takes a gradient in its
    forward), and is left as it was found. ``by_forward`` are names of modules whose ``forward`` is called, and not they
    themselves, ``kinds`` tell units of one make apart, ``blocks`` are those of streams, and ``present`` tells whether
    gradients of parameters are there before. ``layers`` are told what they cost, and ``names`` what has a name
    meanwhile.
    """
    made = [tuple(unit) for unit in units]
    given = (model, example_inputs, made, loss, device, dict(zip(made, kinds or [None] * len(made), strict=True)))
    with forwards_as_calls(map(model.get_submodule, by_forward)):
        try:
            hooks = saved_tensors_hooks(_nothing, _not_kept)
            return _measured(*given, hooks, layers, blocks, present=present, watched=names)
        except _NothingKeptError:
            if names is not None:
                names.at.clear()
            return _measured(*given, without_history(), layers, blocks, present=present)


def _measured(
    model: nn.Module,
    example_inputs: Any,
    names: Sequence[tuple[str, ...]],
    loss: Callable[[Any], Tensor] | None,
    device: torch.device,
    kinds: Mapping[tuple[str, ...], object],
    keeping: saved_tensors_hooks,
    layers: LayersOutside | None,
    blocks: Set[tuple[str, ...]],
    *,
    present: bool,
    watched: Names | None = None,
) -> tuple[list[Cost], Ending]:
    costs: dict[tuple[str, ...], Cost] = {}
    measuring = False

    def enter(unit: tuple[str, ...], kind: object, found: dict[tuple[str, ...], Cost]) -> Callable[..., None]:
        modules = [model.get_submodule(name) for name in unit]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal measuring
            if not measuring and unit not in found:
                measuring = True
                check_not_nested(tensors_in([args, kwargs]))
                with _told(unit):
                    found[unit] = measures.of(modules, args, kwargs, kind, in_stream=unit in blocks)
                measuring = False

        return hook

    def look_at(kinds: Mapping[tuple[str, ...], object], found: dict[tuple[str, ...], Cost], stack: ExitStack) -> None:
        for unit, kind in kinds.items():
            entering = enter(unit, kind, found)
            hook = model.get_submodule(unit[0]).register_forward_pre_hook(entering, with_kwargs=True, prepend=True)
            stack.callback(hook.remove)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        hollow = None
        if without_values(model, example_inputs):
            example_inputs, before = stack.enter_context(hollowed(model, example_inputs))
            hollow = HollowMeasures(before)
        measures = Measures(device, hollow, present=present)
        measures.shared = _shared(model, names)
        stack.enter_context(keeping)
        stack.enter_context(left_as_found(model, example_inputs, eval_mode=False))
        look_at(kinds, costs, stack)
        with ExitStack() as rest:
            if watched is not None:
                watched.watch(model, {unit[0] for unit in names}, lambda: measuring, rest)
            behind: list[list[MemoryReport]] = []
            if names and hollow is None:
                unit = names[-1]
                calls = names.count(unit) * unit.count(unit[-1])
                has_come = nth(calls, lambda: not measuring and unit in costs)
                behind = rest.enter_context(measured_behind(model.get_submodule(unit[-1]), has_come))
            output = call_with_example(model, copied(example_inputs))
        ending = ending_of(measures, output, loss, behind)
        if layers is not None and layers.kinds:  # in a pass of their own: the end of the first one is measured as one
            del output
            measures.outside = True
            look_at(layers.kinds, layers.costs, stack)
            call_with_example(model, copied(example_inputs))
    return [costs.get(unit, Cost()) for unit in names], ending


def _shared(model: nn.Module, units: Sequence[Sequence[str]]) -> Set[nn.Parameter]:
    """The parameters that several calls of units have."""
    times = Counter(
        parameter for unit in units for name in unit for parameter in set(model.get_submodule(name).parameters())
    )
    return {parameter for parameter, count in times.items() if count > 1}


@contextmanager
def _told(unit: tuple[str, ...]) -> Iterator[None]:
    """Of a part that can be trained, but not by itself, is said why.

    Raises:
        ConversionError: it overwrites an argument in training alone, or takes no gradient but of a whole backward.
    """
    try:
        yield
    except RuntimeError as error:
        part = f"{listed(unit)} cannot be measured by itself, so that no plan can be made"
        if "in-place operation" in str(error):
            raise ConversionError(
                f"{part}: it overwrites what it takes; make that out of place (inplace=False)"
            ) from error
        if is_about_hooks(error):
            raise ConversionError(
                f"{part}: it takes a gradient by torch.func in its own forward; convert without a budget"
            ) from error
        if "use_reentrant" in str(error):
            raise ConversionError(
                f"{part}: it calls torch.utils.checkpoint, with use_reentrant=True; take False"
            ) from error
        raise


def _nothing(_: object) -> Any:
    return None


def _not_kept(_: object) -> Any:
    raise _NothingKeptError
