"""The hooks of a trace: they see every module call and every tensor that autograd saves."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from momentumnet.arithmetic.reports import is_hollow
from momentumnet.core.passes.carried import refusal
from momentumnet.core.scaling.spread import spread_of
from momentumnet.recompute.arguments.arguments import named_arguments
from momentumnet.recompute.values.counters import version
from momentumnet.streams.blocks.nested import floating, has_sizes, outputs_beside, stream_output, tensors_in
from momentumnet.streams.tracing.calls import Call, Endpoint, Key, Place, Trace, storage_key

Result = TypeVar("Result")


class _Attach(torch.autograd.Function):
    """Gives a tensor that needs no gradient a place in the graph, over the same storage.

    ``data`` instead of ``detach``: the result is then no view, so a block may overwrite it as it would overwrite
    the tensor itself, and the caller's tensor object stays untouched.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return tensor.data

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _Entered(NamedTuple):
    """A possible stream tensor of a running call: as the caller gave it, as the module sees it, and its version."""

    end: Endpoint
    seen: torch.Tensor
    version: int


class Recorder:
    """Builds the tree of calls from the hooks :meth:`enter`, :meth:`leave` and :meth:`keep`.

    Create it where gradients are enabled; :attr:`trace` is complete when the model's call has returned. What shares
    memory with one of its :attr:`constants` is not counted as kept for backward.

    Args:
        model: whose calls are recorded.
        places: arguments that :attr:`overlooked` named in a trace of the same pass; they are given a gradient.
        values: whether magnitudes and spreads are looked at, which waits for the device.
    """

    def __init__(self, model: nn.Module, places: Collection[Place] = (), *, values: bool = True) -> None:
        self._anchor = torch.zeros((), requires_grad=True)
        self.trace = Trace(Call("", None, -1), {}, attached=self._anchor)
        self._places, self._values = places, values
        # Arguments that may be a stream, and had no gradient by which that could be seen.
        self.overlooked: set[Place] = set()
        self._names = {module: name for name, module in model.named_modules()}
        self._stack = [self.trace.root]
        self._count = 0
        self._entered: dict[Call, list[_Entered]] = {}
        self._counters: dict[Call, list[tuple[torch.Tensor, int]]] = {}
        self._magnitudes: dict[Key, float] = {}
        self._made: list[tuple[Call, int, weakref.ref[torch.UntypedStorage]]] = []
        self.constants = [*model.parameters(), *model.buffers()]

    @cached_property
    def _constant_keys(self) -> set[int | None]:
        return {storage_key(tensor) for tensor in self.constants}

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(self._names[module], module, self._count, recorded_gradients=torch.is_grad_enabled())
        self._count += 1
        self._stack[-1].children.append(call)
        self._stack.append(call)
        arguments = list(tensors_in([args, kwargs]))
        floats = {key: value for key, value in named_arguments(args, kwargs).items() if floating(value)}
        candidates = {key: value for key, value in floats.items() if has_sizes(value)}
        call.first_argument = next(iter(candidates), None)
        call.refusal = next(filter(None, map(_refusal, list(floats.values())[:1] or arguments)), "")
        call.takes_tensor = bool(arguments)
        if len(self._stack) == 2:  # the model itself
            self.trace.given |= {key for key in map(storage_key, arguments) if key is not None}
        call.alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        call.side_nodes = {edge.node for edge in map(_edge, arguments) if edge is not None}
        seen = {
            id(value): self._with_gradient(value)
            for key, value in candidates.items()
            if self._gets_gradient(call, key, candidates)
        }
        self._entered[call] = [
            _Entered(self._endpoint(value, shown, key), shown, shown._version)
            for key, value in candidates.items()
            if _refusal(value) is None
            for shown in [seen.get(id(value), value)]
        ]
        self._counters[call] = [(tensor, version(tensor)) for tensor in arguments]
        call.first = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        args = tuple(seen.get(id(value), value) for value in args)
        return args, {name: seen.get(id(value), value) for name, value in kwargs.items()}

    def _gets_gradient(self, call: Call, key: int | str, candidates: dict[int | str, torch.Tensor]) -> bool:
        """Whether an argument is given one, where it has none, so that what the block does with it can be seen.

        Not every one: a mask that has a gradient takes other kernels, which keep more for backward.
        """
        first = next(iter(candidates.values()))
        value = candidates[key]
        alike = not first.requires_grad and (value.shape, value.dtype) == (first.shape, first.dtype)
        no_positional = not isinstance(next(iter(candidates)), int)
        return not call.refusal and (no_positional or value is first or alike or (call.index, key) in self._places)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A call that ended in an exception which the model caught itself is still on the stack.
        while self._stack[-1].module is not module:
            self._entered.pop(self._stack[-1], None)
            self._counters.pop(self._stack.pop(), None)
        call = self._stack.pop()
        entered, counters = self._entered.pop(call), self._counters.pop(call)
        call.behind = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        call.returns_tensor = next(tensors_in(output), None) is not None
        call.returns_alone = isinstance(output, torch.Tensor)
        arguments = {storage_key(tensor): tensor for tensor in tensors_in([args, kwargs])}
        known = self.trace.storages.keys() | self.trace.given
        call.entered = {key for key in arguments if key is not None and key in known}
        if call.composite and len(arguments) > 1:  # one alone is known by its size
            call.handed = {
                key: tensor.untyped_storage()
                for key, tensor in arguments.items()
                if not (key is None or key in call.entered or key in self._constant_keys)
            }
        stream = stream_output(output)
        if stream is not None and (key := storage_key(stream)) is not None:
            self._made.append((call, key, weakref.ref(stream.untyped_storage())))
        end = None if stream is None else self._endpoint(stream, stream)
        call.spoils = any(item.seen._version != item.version for item in entered)
        call.spoils |= any(version(tensor) != counter for tensor, counter in counters)
        alike = [item for item in entered if end and item.end.is_like(end)]
        self._look_for_gradients(call, alike)
        alike = [item for item in alike if item.end.edge or item.end.argument == call.first_argument]
        if not alike or end is None:
            call.inputs = [] if call.refusal else [replace(item.end, tensor=None) for item in entered[:1]]
            call.output = end and replace(end, tensor=None)
            return
        call.refusal = ""
        call.inputs, call.output, call.keeps_shape = [item.end for item in alike], end, True
        call.overwritten = any(item.seen._version != item.version for item in alike)
        if not call.plain_layer:
            call.inputs = [replace(entry, magnitude=self._magnitude(entry)) for entry in call.inputs]
            call.output = replace(end, magnitude=self._magnitude(end))
            call.spread = self._spread(end)
            self._look_beside(call, entered, output)

    def _look_beside(self, call: Call, entered: list[_Entered], output: Any) -> None:
        """What the call takes, and returns beside the stream in the same shape."""
        for place, tensor in outputs_beside(output):
            end = self._endpoint(tensor, tensor)
            alike = [item for item in entered if item.end.is_like(end)]
            if end.edge is None or not alike:
                continue
            self._look_for_gradients(call, alike)
            call.rewritten |= {item.end.argument for item in alike if item.seen._version != item.version}
            call.beside.append((place, replace(end, magnitude=self._magnitude(end))))
            known = {entry.argument for entry in call.taken}
            new = [item.end for item in alike if item.end.argument not in known]
            call.taken += [replace(entry, magnitude=self._magnitude(entry)) for entry in new]

    def _look_for_gradients(self, call: Call, alike: list[_Entered]) -> None:
        """Arguments that may be a stream, and have no gradient by which that could be seen, have been overlooked."""
        if not any(item.end.edge for item in alike) and call.recorded_gradients and not call.plain_layer:
            self.overlooked |= {(call.index, item.end.argument) for item in alike if item.end.argument is not None}

    def tell_what_was_made(self) -> None:
        """At the end of the pass: of what calls returned, what autograd has kept."""
        for call, key, storage in self._made:
            if storage() is not None and key in self.trace.storages:  # else its number may be another's
                call.made = key
        self._made = []

    def keep(self, tensor: torch.Tensor) -> None:
        key = storage_key(tensor)
        if key is not None and key not in self._constant_keys:
            self.trace.storages.setdefault(key, tensor.untyped_storage())
            self._stack[-1].saved.append(key)
            self._stack[-1].saved_at.append(self._count)
            self._stack[-1].saved_by.append(torch.autograd._get_sequence_nr() - 1)  # type: ignore[attr-defined]

    def _with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = type(tensor) in (torch.Tensor, nn.Parameter, FakeTensor)
        if tensor.requires_grad or not torch.is_grad_enabled() or not plain:
            return tensor
        attached: torch.Tensor = _Attach.apply(tensor, self._anchor)
        return attached

    def _endpoint(self, tensor: torch.Tensor, seen: torch.Tensor, argument: int | str | None = None) -> Endpoint:
        base = seen._base  # not public; the only way to know of a view
        base_edge = None if base is None else _edge(base)
        kind = tuple(tensor.shape), tensor.dtype, tensor.device
        return Endpoint(tensor, *kind, _key(tensor), _edge(seen), base_edge, argument)

    def _magnitude(self, endpoint: Endpoint) -> float:
        if not self._values:
            return 0.0
        if endpoint.tensor is not None and endpoint.key not in self._magnitudes:
            self._magnitudes[endpoint.key] = _largest_magnitude(endpoint.tensor)
        return self._magnitudes[endpoint.key]

    def _spread(self, endpoint: Endpoint) -> float:
        magnitude = self._magnitude(endpoint)
        return spread_of(endpoint.tensor, magnitude) if endpoint.tensor is not None and magnitude else 1.0


def unseen(hook: Callable[..., Result]) -> Callable[..., Result]:
    """The hook, hidden from the function modes of a trace: of all that they see, most would be its looks at tensors."""

    @functools.wraps(hook)
    def hidden(*args: Any) -> Result:
        with torch._C.DisableTorchFunction():
            return hook(*args)

    return hidden


def saved_tensors_shown_to(recorder: Recorder) -> saved_tensors_hooks:
    """Shows the recorder what autograd saves.

    The graph owns the hook and what it returns, and the recorder owns the graph, so both must stay free of the way
    back: a hook that held the recorder, or returned a tensor with its ``grad_fn``, would never be freed.
    """
    reference = weakref.ref(recorder)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        living = reference()
        if living is not None:
            living.keep(tensor)
        return tensor.detach()

    return saved_tensors_hooks(unseen(pack), lambda tensor: tensor)


def _largest_magnitude(tensor: torch.Tensor) -> float:
    """The largest finite absolute value in ``tensor``, 0 where there is none."""
    values = tensor.detach()
    if is_hollow(values) or values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    top = max(-float(low), float(high))
    if not math.isfinite(top):
        values = values[values.isfinite()]
        return float(values.abs().amax()) if values.numel() else 0.0
    return top


def _refusal(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return (
            "it is nested, so that sizes cannot be told; give a padded example (what is converted with it takes nested "
            "tensors as well, with stored activations)"
        )
    return refusal(tensor)


def _key(tensor: torch.Tensor) -> Key:
    return id(tensor), tensor._version


def _edge(tensor: torch.Tensor) -> GradientEdge | None:
    # A view that was taken without gradients says that it requires one, and has no place in the graph.
    is_cut_off = tensor.grad_fn is None and tensor._base is not None and tensor._base.requires_grad
    # The edge of a leaf is found by a view, which there is none of where sizes cannot be told.
    is_cut_off |= tensor.grad_fn is None and tensor.is_nested
    return get_gradient_edge(tensor) if tensor.requires_grad and not is_cut_off else None
