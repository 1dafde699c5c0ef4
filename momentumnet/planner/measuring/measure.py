"""Measuring a training step: the model runs once, and each unit by itself when its turn comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from momentumnet.errors import ConversionError, MomentumNetError
from momentumnet.listing import listed
from momentumnet.memory import MemoryReport
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.planner.measuring.alone import (
    check_not_nested,
    gradients_put_aside,
    without_history,
)
from momentumnet.planner.measuring.ending import Ending, ending_of, measured_behind, nth
from momentumnet.planner.measuring.glue import LayersOutside
from momentumnet.planner.measuring.hollow import HollowMeasures, hollowed, without_values
from momentumnet.planner.measuring.names import Names
from momentumnet.planner.measuring.tail import Tail
from momentumnet.planner.measuring.unit_cost import Measures
from momentumnet.planner.profiles.unit import Cost
from momentumnet.recompute.own_gradients import is_about_hooks
from momentumnet.streams.blocks.nested import copied, tensors_in
from momentumnet.streams.tracing.forwards import forwards_as_calls
from momentumnet.streams.tracing.guard import left_as_found
from momentumnet.streams.tracing.trace import call_with_example


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
    step = _Step(
        model,
        example_inputs,
        made,
        dict(zip(made, kinds or [None] * len(made), strict=True)),
        blocks,
        loss,
        device,
        present=present,
        hollow=without_values(model, example_inputs),
    )
    with gradients_put_aside(model.parameters()), forwards_as_calls(map(model.get_submodule, by_forward)):
        try:
            return step.measured(saved_tensors_hooks(_nothing, _not_kept), layers, names)
        except _NothingKeptError:
            if names is not None:
                names.at.clear()
            return step.measured(without_history(), layers, None)


@dataclass(frozen=True)
class _Step:
    """The step that is measured, of a model on its example.

    Attributes:
        units: names of the modules of each, in the order of their calls.
        kinds: what tells units of one make apart.
        blocks: the units that are blocks of streams.
        present: whether gradients of parameters are there before.
        hollow: whether tensors have no values.
    """

    model: nn.Module
    example_inputs: Any
    units: Sequence[tuple[str, ...]]
    kinds: Mapping[tuple[str, ...], object]
    blocks: Set[tuple[str, ...]]
    loss: Callable[[Any], Tensor] | None
    device: torch.device
    present: bool
    hollow: bool

    def measured(
        self, keeping: saved_tensors_hooks, layers: LayersOutside | None, names: Names | None
    ) -> tuple[list[Cost], Ending]:
        """Run the model with what it keeps for backward handed to ``keeping``, and measure what it comes to."""
        costs: dict[tuple[str, ...], Cost] = {}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            example_inputs, measures = self._measures(stack)
            stack.enter_context(keeping)
            stack.enter_context(left_as_found(self.model, example_inputs, eval_mode=False))
            calls = _MeasuredCalls(self.model, measures, self.blocks)
            calls.look_at(self.kinds, costs, stack)
            with ExitStack() as rest:
                if names is not None:
                    names.watch(self.model, {unit[0] for unit in self.units}, lambda: calls.are_measured, rest)
                behind = self._behind(lambda unit: not calls.are_measured and unit in costs, rest)
                output = call_with_example(self.model, copied(example_inputs))
            ending = ending_of(measures, output, self.loss, behind)
            del output
            # Passes of their own: the end of the first one is measured as one.
            if self.units and not self.hollow and names is not None:
                tail = Tail(self.model, self.units, present=self.present)
                run = partial(call_with_example, self.model, copied(example_inputs))
                ending = replace(ending, backward=tail.measured(run, self.loss))
            if layers is not None and layers.kinds:
                measures.outside = True
                calls.look_at(layers.kinds, layers.costs, stack)
                call_with_example(self.model, copied(example_inputs))
        return [costs.get(unit, Cost()) for unit in self.units], ending

    def _measures(self, stack: ExitStack) -> tuple[Any, Measures]:
        """The example as it is run, and what measures on it."""
        example_inputs, hollow = self.example_inputs, None
        if self.hollow:
            example_inputs, before = stack.enter_context(hollowed(self.model, example_inputs))
            hollow = HollowMeasures(before)
        measures = Measures(self.device, hollow, present=self.present)
        measures.shared = _shared(self.model, self.units)
        return example_inputs, measures

    def _behind(self, is_over: Callable[[tuple[str, ...]], bool], stack: ExitStack) -> Sequence[Sequence[MemoryReport]]:
        """Gets what the forward does behind the last unit; nothing where tensors have no values."""
        if not self.units or self.hollow:
            return []
        unit = self.units[-1]
        times = self.units.count(unit) * unit.count(unit[-1])
        has_come = nth(times, lambda: is_over(unit))
        return stack.enter_context(measured_behind(self.model.get_submodule(unit[-1]), has_come))


class _MeasuredCalls:
    """Calls of modules of a model, at the first of which a unit is measured.

    Attributes:
        are_measured: whether one is being measured now, so that further calls are its own.
    """

    def __init__(self, model: nn.Module, measures: Measures, blocks: Set[tuple[str, ...]]) -> None:
        self._model, self._measures, self._blocks = model, measures, blocks
        self.are_measured = False

    def look_at(
        self, kinds: Mapping[tuple[str, ...], object], found: dict[tuple[str, ...], Cost], stack: ExitStack
    ) -> None:
        """Measure these units, each with its kind, when the first module of each is called."""
        for unit, kind in kinds.items():
            entering = self._entering(unit, kind, found)
            hook = self._model.get_submodule(unit[0]).register_forward_pre_hook(
                entering, with_kwargs=True, prepend=True
            )
            stack.callback(hook.remove)

    def _entering(self, unit: tuple[str, ...], kind: object, found: dict[tuple[str, ...], Cost]) -> Callable[..., None]:
        modules = [self._model.get_submodule(name) for name in unit]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.are_measured and unit not in found:
                self.are_measured = True
                check_not_nested(tensors_in([args, kwargs]))
                with _told(unit):
                    found[unit] = self._measures.of(modules, args, kwargs, kind, in_stream=unit in self._blocks)
                self.are_measured = False

        return hook


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
        ConversionError: it overwrites an argument in training alone, takes no gradient but of a whole backward, or
            raised anything else.
    """
    try:
        yield
    except MomentumNetError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
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
        raise ConversionError(
            f"{part}: it raised {type(error).__name__} there ({error}); convert without a budget"
        ) from error


def _nothing(_: object) -> Any:
    return None


def _not_kept(_: object) -> Any:
    raise _NothingKeptError
