"""What a unit costs: it runs alone, forward and backward, on the arguments that it gets in the step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from momentumnet.memory import MemoryReport, measure_memory
from momentumnet.planner.measuring.alone import (
    differentiate,
    gradient_bytes,
    gradients_there,
    handed,
    leaf_of,
    waiting,
    without_gradients,
    without_history,
)
from momentumnet.planner.measuring.hollow import HollowMeasures
from momentumnet.planner.profiles.unit import Cost
from momentumnet.recompute.attributes.left_attributes import Attributes
from momentumnet.recompute.attributes.standing import without_scripts
from momentumnet.recompute.saved.saved_values import SAMPLED
from momentumnet.recompute.values import object_copies
from momentumnet.streams.blocks.nested import tensors_in

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
        self._taken_by = measure_memory if hollow is None else hollow.memory
        # What a run leaves on attributes, until it is put back: a backward of the network's own may read it, and leave
        # gradients, which are none of the next one's.
        self._left = ExitStack()
        self._known: dict[Any, Cost] = {}

    def of(
        self,
        modules: Sequence[nn.Module],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        kind: object,
        *,
        in_stream: bool = False,
    ) -> Cost:
        """The cost of the modules, called one after the other; ``kind`` tells of those of one make, too."""
        own = (parameter in self.shared for module in modules for parameter in module.parameters())
        make = kind, in_stream, tuple(own) if self.shared else (), _make(modules, args, kwargs)
        if make not in self._known:
            self._known[make] = self._measure(modules, args, kwargs, in_stream=in_stream)
        return self._known[make]

    def _measure(
        self, modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], *, in_stream: bool
    ) -> Cost:
        owners = without_scripts(inner for module in modules for inner in module.modules())
        views: list[Tensor] = []

        def run() -> Any:
            torch.clear_autocast_cache()  # a recompute casts its weights again
            leaves: list[Tensor] = []
            views.clear()

            def given(tensor: Tensor) -> Tensor:
                leaf = leaf_of(tensor)
                leaves.extend([leaf] if leaf.requires_grad else [])
                # In a step it is no leaf, of which autocast would keep its cast. `view_as` may give a dimension of
                # size 1 another stride, by which convolutions choose how they work.
                if not leaf.requires_grad:
                    return leaf
                views.append(leaf[...])
                return views[-1]

            # Objects, too: what one run leaves in them, or on attributes, is not for the next.
            given_args, given_kwargs = object_copies.copied((args, kwargs), given)
            self._left.enter_context(Attributes(modules[0], owners).replayed())
            self._left.callback(without_gradients, parameters)
            output = modules[0](*given_args, **given_kwargs)
            for module in modules[1:]:
                output = module(output)
            return output, leaves

        parameters = list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())
        found = self.cost(run, parameters)
        if not in_stream:
            return found
        with torch.enable_grad(), without_history():
            return replace(found, stream_peak=self._in_stream(run, parameters, views))

    def memory(self, call: Call) -> MemoryReport:
        """What a call takes, behind which attributes are put back."""
        with self._left:
            return self._taken_by(call)

    def _in_stream(self, run: Call, parameters: Sequence[Tensor], views: list[Tensor]) -> int:
        """The most bytes in backward where a gradient of the input has come before those that the run makes."""

        def both() -> Any:
            output, leaves = run()
            first = next((leaf for leaf in tensors_in([output]) if leaf.requires_grad), None)
            alike = (view for view in views if first is not None and view.shape == first.shape)
            total = handed([output, next(alike, None)])
            del output, first, alike
            views.clear()
            torch.clear_autocast_cache()
            return behind(total, [*leaves, *parameters])

        with gradients_there(parameters) if self._present else nullcontext(differentiate) as behind:
            whole = self.memory(both)
        return max(0, whole.backward_peak_bytes - whole.saved_bytes)

    def cost(self, run: Call, parameters: Sequence[Tensor]) -> Cost:
        """The cost of what returns an output and the leaves that it came from."""
        with torch.enable_grad(), without_history():
            output_bytes = self._output_bytes(run)
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

            forward_peak = 0 if self.outside else self.memory(run).peak_bytes
            with gradients_there(parameters) if self._present else nullcontext(differentiate) as behind:
                whole = self.memory(both)
            again = self._again(run, parameters)
            cast_bytes = self._cast_bytes(run)
            free = self._keeping_nothing(run)
        there = [parameter.numel() * parameter.element_size() for parameter in parameters if self._present]
        return Cost(
            forward_seconds=forward,
            backward_seconds=backward,
            free_peak=free,
            forward_peak=forward_peak,
            backward_peak=max(0, whole.backward_peak_bytes - whole.saved_bytes),
            output_bytes=output_bytes,
            parameter_bytes=sum(made),
            cast_bytes=cast_bytes,
            added_bytes=max(there, default=0),
            again_peak=again,
        )

    def _output_bytes(self, run: Call) -> int:
        with self._left:
            outputs = [leaf for leaf in tensors_in([run()[0]]) if leaf.requires_grad]
            return sum(leaf.numel() * leaf.element_size() for leaf in outputs)

    def _cast_bytes(self, run: Call) -> int:
        """What a run under autocast leaves behind when nobody holds its output: the casts that autocast keeps."""
        if self.outside or self._device.type == "meta" or not torch.is_autocast_enabled(self._device.type):
            return 0

        def cast() -> None:
            run()
            self._left.close()

        return self.memory(cast).saved_bytes

    def _keeping_nothing(self, run: Call) -> int:
        """The most bytes in a run that keeps nothing: as what is recomputed later runs, or without gradients."""
        if not self.outside:
            return self.memory(lambda: _recomputed_later(run)).peak_bytes
        with torch.no_grad():
            return self.memory(run).peak_bytes

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
        found = []
        for _ in range(REPEATS if self._hollow is None else 1):
            with self._left:
                found.append(self._seconds_once(run, parameters))
        forward, backward = zip(*found, strict=True)
        return min(forward), min(backward)

    def _seconds_once(self, run: Call, parameters: Sequence[Tensor]) -> tuple[float, float]:
        if self._hollow is not None:
            (output, leaves), seconds = self._hollow.seconds(run)
            total = handed(output)
            return seconds, self._hollow.seconds(lambda: differentiate(total, [*leaves, *parameters]))[1]
        start = now(self._device)
        output, leaves = run()
        middle = now(self._device)
        differentiate(handed(output), [*leaves, *parameters])
        return middle - start, now(self._device) - middle


def _recomputed_later(run: Call) -> Any:
    """A run that drops what it saves; the last ones are held to its end, to be compared with those of a recompute."""
    last: deque[Tensor] = deque(maxlen=SAMPLED)

    def drop(tensor: Tensor) -> None:
        if tensor.requires_grad and not tensor.is_leaf and not _is_of_leaf(tensor):
            last.append(tensor)

    try:
        with saved_tensors_hooks(drop, _not_there):
            return run()
    finally:
        last.clear()  # the graph holds the hook, which holds them: nobody would let go of it


def _not_there(_: object) -> Any:
    return None


def _is_of_leaf(tensor: Tensor) -> bool:
    """Whether it is a view of what the run was given: of a parameter or an argument."""
    return tensor._base is not None and tensor._base.is_leaf


def now(device: torch.device) -> float:
    """The time, in seconds, when the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _make(modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tells units apart that may cost different."""
    layers = [layer for module in modules for layer in module.modules()]
    inside = [(type(layer), layer.training, *map(_kind, layer._parameters.values())) for layer in layers]
    return tuple(inside), tuple(map(_kind, pytree.tree_leaves((args, kwargs))))


def _kind(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return type(leaf)
    return leaf.shape, leaf.dtype, leaf.requires_grad, leaf.stride() if leaf.layout == torch.strided else None
