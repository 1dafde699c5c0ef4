"""Measuring a training step, unit by unit: each runs alone, forward and backward, on the arguments that it gets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from momentumnet.errors import ConversionError, MomentumNetError
from momentumnet.listing import listed
from momentumnet.memory import MemoryReport, measure_memory
from momentumnet.planner.alone import (
    check_not_nested,
    differentiate,
    gradient_bytes,
    gradients_there,
    handed,
    leaf_of,
    waiting,
    without_history,
)
from momentumnet.planner.ending import Ending, ending_of, measured_behind, nth
from momentumnet.planner.glue import LayersOutside
from momentumnet.planner.hollow import HollowMeasures, hollowed, without_values
from momentumnet.planner.names import Names
from momentumnet.planner.profile import Cost
from momentumnet.recompute import object_copies
from momentumnet.recompute.left_attributes import Attributes, without_scripts
from momentumnet.recompute.own_gradients import is_about_hooks
from momentumnet.streams.forwards import forwards_as_calls
from momentumnet.streams.guard import left_as_found
from momentumnet.streams.nested import copied, tensors_in
from momentumnet.streams.trace import call_with_example

# Timed runs of a unit, of which the quickest counts.
REPEATS = 2
Call = Callable[[], Any]


class Measures:
    """What units cost; units of the same make on arguments of the same shapes are measured once.

    Args:
        device: where they run.
        hollow: what measures them without values.
        present: whether gradients of parameters are there before, and are added to.
    """

    def __init__(self, device: torch.device, hollow: HollowMeasures | None = None, *, present: bool = False) -> None:
        self._device, self._hollow, self._present = device, hollow, present
        self.shared: Set[nn.Parameter] = frozenset()  # that several units have
        self.outside = False  # whether it is layers outside: no times, and nothing of what they keep
        self.memory = measure_memory if hollow is None else hollow.memory
        self._known: dict[Any, Cost] = {}

    def of(self, modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], kind: object) -> Cost:
        """The cost of the modules, called one after the other; ``kind`` tells of those of one make, too."""
        own = (parameter in self.shared for module in modules for parameter in module.parameters())
        make = kind, tuple(own) if self.shared else (), _make(modules, args, kwargs)
        if make not in self._known:
            self._known[make] = self._measure(modules, args, kwargs)
        return self._known[make]

    def _measure(self, modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cost:
        owners = without_scripts(inner for module in modules for inner in module.modules())

        def run() -> Any:
            torch.clear_autocast_cache()  # a recompute casts its weights again
            leaves: list[Tensor] = []

            def given(tensor: Tensor) -> Tensor:
                leaf = leaf_of(tensor)
                leaves.extend([leaf] if leaf.requires_grad else [])
                # In a step it is no leaf, of which autocast would keep its cast. `view_as` may give a dimension of
                # size 1 another stride, by which convolutions choose how they work.
                return leaf[...] if leaf.requires_grad else leaf

            # Objects, too: what one run leaves in them, or on attributes, is not for the next.
            given_args, given_kwargs = object_copies.copied((args, kwargs), given)
            with Attributes(modules[0], owners).replayed():
                output = modules[0](*given_args, **given_kwargs)
                for module in modules[1:]:
                    output = module(output)
            return output, leaves

        parameters = list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())
        return self.cost(run, parameters)

    def cost(self, run: Call, parameters: Sequence[Tensor]) -> Cost:
        """The cost of what returns an output and the leaves that it came from."""
        with torch.enable_grad(), without_history():
            output, leaves = run()
            outputs = [leaf for leaf in tensors_in([output]) if leaf.requires_grad]
            output_bytes = sum(leaf.numel() * leaf.element_size() for leaf in outputs)
            del output, outputs, leaves
            forward, backward = (0.0, 0.0) if self.outside else self._seconds(run, parameters)

            made = [0]

            def both() -> Any:
                output, leaves = run()
                total = handed(output)
                del output  # in the step nobody holds it
                torch.clear_autocast_cache()  # a backward stands behind autocast
                gradients = behind(total, [*leaves, *parameters])
                made.extend(map(gradient_bytes, (gradients or ())[len(leaves) :]))
                return gradients

            def cast() -> None:
                run()

            forward_peak = 0 if self.outside else self.memory(run).peak_bytes
            with gradients_there(parameters) if self._present else nullcontext(differentiate) as behind:
                whole = self.memory(both)
            again = self._again(run, parameters)
            casts = not self.outside and self._device.type != "meta" and torch.is_autocast_enabled(self._device.type)
            cast_bytes = self.memory(cast).saved_bytes if casts else 0
        with torch.no_grad():
            free = self.memory(run)
        there = [parameter.numel() * parameter.element_size() for parameter in parameters if self._present]
        return Cost(
            forward_seconds=forward,
            backward_seconds=backward,
            free_peak=free.peak_bytes,
            forward_peak=forward_peak,
            backward_peak=max(0, whole.backward_peak_bytes - whole.saved_bytes),
            output_bytes=output_bytes,
            parameter_bytes=sum(made),
            cast_bytes=cast_bytes,
            added_bytes=max(there, default=0),
            again_peak=again,
        )

    def _again(self, run: Call, parameters: Sequence[Tensor]) -> int:
        """The most bytes in backward where other gradients of shared parameters wait, beside those."""
        shared = [parameter for parameter in parameters if parameter in self.shared]
        if not shared or self._present or self.outside:
            return 0

        def both() -> Any:
            output, leaves = run()
            total, before = handed(output), waiting(shared)  # the latter's gradients come first
            del output
            torch.clear_autocast_cache()
            return None if total is None else differentiate(total + before, [*leaves, *parameters])

        found = self.memory(both)
        there = sum(parameter.numel() * parameter.element_size() for parameter in shared)
        return max(0, found.backward_peak_bytes - found.saved_bytes - there)

    def _seconds(self, run: Call, parameters: Sequence[Tensor]) -> tuple[float, float]:
        if self._hollow is not None:
            (output, leaves), seconds = self._hollow.seconds(run)
            total = handed(output)
            both = self._hollow.seconds(lambda: differentiate(total, [*leaves, *parameters]))
            return seconds, both[1]
        forward, backward = [], []
        for _ in range(REPEATS):
            start = now(self._device)
            output, leaves = run()
            middle = now(self._device)
            differentiate(handed(output), [*leaves, *parameters])
            forward.append(middle - start)
            backward.append(now(self._device) - middle)
        return min(forward), min(backward)


def now(device: torch.device) -> float:
    """The time, in seconds, when the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
    present: bool = False,
    layers: LayersOutside | None = None,
    names: Names | None = None,
) -> tuple[list[Cost], Ending]:
    """The costs of the units, each measured when its first module is called, and that of the loss.

    The model runs once, in its own mode, without keeping what backward would need (but where it takes a gradient in its
    forward), and is left as it was found. ``by_forward`` are names of modules whose ``forward`` is called, and not they
    themselves, ``kinds`` tell units of one make apart, and ``present`` whether gradients of parameters are there
    before. ``layers`` are told what they cost, and ``names`` what has a name meanwhile.
    """
    made = [tuple(unit) for unit in units]
    given = (model, example_inputs, made, loss, device, dict(zip(made, kinds or [None] * len(made), strict=True)))
    with forwards_as_calls(map(model.get_submodule, by_forward)):
        try:
            hooks = saved_tensors_hooks(_nothing, _not_kept)
            return _measured(*given, hooks, layers, present=present, watched=names)
        except _NothingKeptError:
            if names is not None:
                names.at.clear()
            return _measured(*given, without_history(), layers, present=present)


def _measured(
    model: nn.Module,
    example_inputs: Any,
    names: Sequence[tuple[str, ...]],
    loss: Callable[[Any], Tensor] | None,
    device: torch.device,
    kinds: Mapping[tuple[str, ...], object],
    keeping: saved_tensors_hooks,
    layers: LayersOutside | None,
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
                    found[unit] = measures.of(modules, args, kwargs, kind)
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


def _make(modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tells units apart that may cost different."""
    layers = [layer for module in modules for layer in module.modules()]
    inside = [(type(layer), layer.training, *map(_kind, layer._parameters.values())) for layer in layers]
    return tuple(inside), tuple(map(_kind, pytree.tree_leaves((args, kwargs))))


def _kind(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return type(leaf)
    return leaf.shape, leaf.dtype, leaf.requires_grad, leaf.stride() if leaf.layout == torch.strided else None
