"""One traced forward pass: which module was called with which tensor, and what autograd kept for it.

The trace runs the model once in eval mode with gradients enabled and leaves it as it was found. Tensors are known
by the identity of their Python objects, so every tensor that may belong to a stream is kept alive until the
:class:`Trace` is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge, saved_tensors_hooks

from momentumnet.errors import ConversionError
from momentumnet.streams.guard import eager_functions, fresh_dropout_outputs, left_as_found
from momentumnet.streams.nested import copied, floating, stream_output, tensors_in

Key = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A tensor as it entered or left a module call.

    ``key`` is its identity and its version at that moment; it means something only while ``tensor`` is kept alive.
    """

    tensor: torch.Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: Key
    edge: GradientEdge | None


@dataclass(eq=False)
class Call:
    """One call of one module.

    ``inputs`` holds the tensors that can be the stream: the first floating-point tensor among the positional
    arguments or, where there is none, the floating-point keyword arguments. ``keeps_shape`` says that one of them
    has the shape and dtype of the output; then ``inputs`` holds only such tensors, and the endpoints keep them alive.
    """

    name: str
    module: nn.Module | None
    index: int
    children: list[Call] = field(default_factory=list)
    inputs: list[Endpoint] = field(default_factory=list)
    side_nodes: set[Node] = field(default_factory=set)
    output: Endpoint | None = None
    keeps_shape: bool = False
    takes_tensor: bool = False
    returns_tensor: bool = False
    recorded_gradients: bool = True
    overwritten: bool = False
    magnitude: float = 0.0
    saved: list[int] = field(default_factory=list)

    @property
    def composite(self) -> bool:
        """Whether the module has children of its own."""
        return self.module is not None and next(self.module.children(), None) is not None

    @property
    def plain_layer(self) -> bool:
        """Whether the module is a childless layer of ``torch.nn``, which cannot be a residual block."""
        return not self.composite and type(self.module).__module__.startswith("torch.nn.modules.")

    def walk(self) -> Iterator[Call]:
        """This call and all calls inside it, in call order."""
        pending = [self]
        while pending:
            call = pending.pop()
            yield call
            pending.extend(reversed(call.children))


@dataclass(eq=False)
class Trace:
    """The calls of one forward pass, below a root frame without a module, and the storages that autograd kept."""

    root: Call
    storages: dict[int, torch.UntypedStorage]

    def saved_bytes(self, calls: list[Call] | None = None) -> int:
        """Bytes that autograd kept for ``calls`` and what they called; of the whole pass where ``None``."""
        if calls is None:
            return sum(storage.nbytes() for storage in self.storages.values())
        keys = {key for call in calls for inner in call.walk() for key in inner.saved}
        return sum(self.storages[key].nbytes() for key in keys)


def call_with_example(model: nn.Module, example_inputs: Any) -> Any:
    """Calls ``model`` with ``example_inputs`` and returns what it returns.

    Args:
        model: The module to call.
        example_inputs: A tensor or a list (one positional argument), a tuple (the positional arguments) or a
            mapping (the keyword arguments).

    Raises:
        ConversionError: ``example_inputs`` is something else.

    Example:
        >>> call_with_example(nn.Linear(2, 3), torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple):
        return model(*example_inputs)
    if isinstance(example_inputs, (torch.Tensor, list)):
        return model(example_inputs)
    raise ConversionError(
        f"example_inputs is of type {type(example_inputs).__name__}; expected a tensor, a list (one positional "
        "argument), a tuple of positional arguments or a dict of keyword arguments."
    )


def record(model: nn.Module, example_inputs: Any) -> Trace:
    """Traces one forward pass of ``model`` and leaves the model, the inputs and the generators as they were.

    Args:
        model: The module to trace; it runs in eval mode with gradients enabled.
        example_inputs: See :func:`call_with_example`.

    Returns:
        The trace, which holds the pass's activations and autograd graph until it is dropped.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(left_as_found(model, list(tensors_in(example_inputs))))
        recorder = _Recorder(model)
        stack.enter_context(eager_functions())
        for module in model.modules():
            before = module.register_forward_pre_hook(recorder.enter, with_kwargs=True, prepend=True)
            stack.callback(before.remove)
            after = module.register_forward_hook(recorder.leave, with_kwargs=True)
            stack.callback(after.remove)
        stack.enter_context(saved_tensors_hooks(recorder.keep, lambda tensor: tensor))
        stack.enter_context(fresh_dropout_outputs())
        call_with_example(model, copied(example_inputs))
    return Trace(recorder.root, recorder.storages)


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


class _Recorder:
    """The hooks of the trace and what they have seen."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.root = Call("", None, -1)
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._stack = [self.root]
        self._count = 0
        self._entered: dict[Call, list[_Entered]] = {}
        self._attached: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._anchor = torch.zeros((), requires_grad=True)
        self._magnitudes: dict[Key, float] = {}
        constants = [*model.parameters(), *model.buffers()]
        self._constants = {_storage_key(tensor) for tensor in constants}

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(self.names[module], module, self._count, recorded_gradients=torch.is_grad_enabled())
        self._count += 1
        self._stack[-1].children.append(call)
        self._stack.append(call)
        candidates = [value for value in args if floating(value)][:1]
        candidates = candidates or [value for value in kwargs.values() if floating(value)]
        arguments = list(tensors_in([args, kwargs]))
        call.takes_tensor = bool(arguments)
        call.side_nodes = {edge.node for edge in map(_edge, arguments) if edge is not None}
        seen = {id(value): self._with_gradient(value) for value in candidates}
        self._entered[call] = [
            _Entered(self._endpoint(value, seen[id(value)]), seen[id(value)], seen[id(value)]._version)
            for value in candidates
        ]
        args = tuple(seen.get(id(value), value) for value in args)
        return args, {name: seen.get(id(value), value) for name, value in kwargs.items()}

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A call that ended in an exception which the model caught itself is still on the stack.
        while self._stack[-1].module is not module:
            self._entered.pop(self._stack.pop(), None)
        call = self._stack.pop()
        entered = self._entered.pop(call)
        call.returns_tensor = next(tensors_in(output), None) is not None
        stream = stream_output(output)
        end = None if stream is None else self._endpoint(stream, stream)
        alike = [item for item in entered if end and (item.end.shape, item.end.dtype) == (end.shape, end.dtype)]
        if not alike or end is None:
            call.inputs = [replace(item.end, tensor=None) for item in entered[:1]]
            call.output = end and replace(end, tensor=None)
            return
        call.inputs, call.output, call.keeps_shape = [item.end for item in alike], end, True
        call.overwritten = any(item.seen._version != item.version for item in alike)
        if not call.plain_layer:
            call.magnitude = max(self._magnitude(endpoint) for endpoint in [*call.inputs, end])

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        key = _storage_key(tensor)
        if key is not None and key not in self._constants:
            self.storages.setdefault(key, tensor.untyped_storage())
            self._stack[-1].saved.append(key)
        return tensor

    def _with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = type(tensor) in (torch.Tensor, nn.Parameter)
        if tensor.requires_grad or not torch.is_grad_enabled() or not plain:
            return tensor
        attached: torch.Tensor = _Attach.apply(tensor, self._anchor)
        self._attached[id(attached)] = (attached, tensor)
        return attached

    def _key(self, tensor: torch.Tensor) -> Key:
        if id(tensor) in self._attached:
            _, original = self._attached[id(tensor)]
            return id(original), original._version + tensor._version
        return id(tensor), tensor._version

    def _endpoint(self, tensor: torch.Tensor, seen: torch.Tensor) -> Endpoint:
        return Endpoint(tensor, tuple(tensor.shape), tensor.dtype, self._key(tensor), _edge(seen))

    def _magnitude(self, endpoint: Endpoint) -> float:
        if endpoint.tensor is not None and endpoint.key not in self._magnitudes:
            self._magnitudes[endpoint.key] = largest_magnitude(endpoint.tensor)
        return self._magnitudes[endpoint.key]


def largest_magnitude(tensor: torch.Tensor) -> float:
    """The largest finite absolute value in ``tensor``, 0 where there is none."""
    values = tensor.detach()
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    top = max(-float(low), float(high))
    if not math.isfinite(top):
        values = values[values.isfinite()]
        return float(values.abs().amax()) if values.numel() else 0.0
    return top


def _edge(tensor: torch.Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _storage_key(tensor: torch.Tensor) -> int | None:
    if tensor.layout is not torch.strided:  # sparse and jagged tensors have no storage of their own
        return None
    return tensor.untyped_storage()._cdata
