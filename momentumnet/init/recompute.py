"""Checkpoints that also hold for the second derivative: a block keeps its inputs, and the gradient of its output.

A checkpoint of the usual kind saves memory in the first derivative only: a backward pass that is itself differentiated
saves what it has recomputed. Here a block's backward is a checkpoint as well, so the graph of the gradient holds two
tensors of the stream's size for each block, and one block's activations at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.errors import MomentumNetError
from momentumnet.loss.batches import Batch
from momentumnet.loss.derivatives import product
from momentumnet.loss.samples import sliced
from momentumnet.recompute.surroundings.generators import Generators
from momentumnet.streams.blocks.converted import converted_blocks
from momentumnet.streams.finding.discover import discover
from momentumnet.streams.tracing.forwards import wrapped_forwards


def blocks_of(model: nn.Module, batch: Batch) -> list[nn.Module]:
    """The modules to recompute one by one: a stream's blocks and what stands beside streams; else the model's children.

    Blocks are found by a call on two samples; a converted network knows its own.
    """
    converted = [block for block, _ in converted_blocks(model)]
    if converted:
        return converted
    inputs = sliced(batch, slice(2))[0]
    found = discover(model, tuple(inputs) if isinstance(inputs, list) else inputs)
    names = dict.fromkeys([name for stream in found.streams for name in stream.blocks] + list(found.outside))
    if found.streams:
        return [model.get_submodule(name) for name in names]
    return list(model.children()) or [model]


def recomputed(blocks: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Make every call of the blocks a checkpoint, for first and second derivatives, while the context lasts."""
    return wrapped_forwards(blocks, _checkpointed)


def _checkpointed(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    call, tensors = _Call.of(module, forward, args, kwargs)
    if not torch.is_grad_enabled() or not tensors:
        return forward(*args, **kwargs)
    return call.with_outputs(_Recomputed.apply(call, *tensors))


class _Body(nn.Module):
    """The block as it was, for `functional_call`: without the checkpoint, and without hooks, which run outside."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._call = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class _Call:
    """One call of a block, as a function of the tensors that need gradients: arguments and parameters."""

    def __init__(self, body: _Body, arguments: Any, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        self._body, self._names, self.count = body, tuple(names), len(tensors)
        leaves, self._spec = pytree.tree_flatten(arguments)
        # The graph holds the tensors with gradients, and this call, which the graph holds, must not hold the graph.
        self._leaves = [_WANTED if _needs_gradient(leaf) else leaf for leaf in leaves]
        # A block that runs again must see what it saw, and move no running statistics.
        self._buffers = {name: buffer.detach().clone() for name, buffer in body.named_buffers()}
        self._generators = Generators(*{tensor.device for tensor in tensors})
        self._outputs: list[Any] = []
        self._output_spec: Any = None

    @classmethod
    def of(
        cls, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Call, list[Tensor]]:
        """The call, and the tensors that it is a function of: arguments, then parameters."""
        body = _Body(module, forward)
        parameters = {name: parameter for name, parameter in body.named_parameters() if parameter.requires_grad}
        arguments = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if _needs_gradient(leaf)]
        tensors = [*arguments, *parameters.values()]
        return cls(body, (args, kwargs), tensors, tuple(parameters)), tensors

    def first(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The call that counts: on the module's buffers and the generators as they are."""
        inputs = [tensor.detach().requires_grad_() for tensor in tensors]
        leaves, self._output_spec = pytree.tree_flatten(self._run(inputs, {}))
        outputs = [leaf for leaf in leaves if _needs_gradient(leaf)]
        self._check_graph(outputs, inputs)
        self._outputs = [_WANTED if _needs_gradient(leaf) else leaf for leaf in leaves]
        return tuple(output.detach() for output in outputs)

    def again(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs that need gradients, with their graph."""
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        with self._generators.replayed():
            leaves = pytree.tree_leaves(self._run(inputs, buffers))
        return [leaf for leaf in leaves if _needs_gradient(leaf)]

    def with_outputs(self, tensors: Sequence[Tensor]) -> Any:
        """The block's output with these tensors in it."""
        return pytree.tree_unflatten(_filled(self._outputs, tensors), self._output_spec)

    def _run(self, inputs: Sequence[Tensor], buffers: dict[str, Tensor]) -> Any:
        given = self.count - len(self._names)
        args, kwargs = pytree.tree_unflatten(_filled(self._leaves, inputs[:given]), self._spec)
        parameters = dict(zip(self._names, inputs[given:], strict=True))
        with torch.enable_grad():
            return functional_call(self._body, {**buffers, **parameters}, args, kwargs)

    def _check_graph(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Refuse a block whose output needs a gradient from elsewhere: the checkpoint would lose it."""
        known = {id(tensor) for tensor in inputs}
        waiting = [output.grad_fn for output in outputs]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in known:
                raise MomentumNetError(
                    f"{type(self._body.module).__name__} uses a tensor of shape {tuple(variable.shape)} that needs a "
                    "gradient and is neither an argument nor a parameter of its own, so it cannot be recomputed alone; "
                    "pass checkpoint=False"
                )
            for following, _ in node.next_functions if node is not None else ():
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)


_WANTED = object()  # stands where a tensor that needs a gradient belongs


def _needs_gradient(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _filled(leaves: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    remaining = iter(tensors)
    return [next(remaining) if leaf is _WANTED else leaf for leaf in leaves]


class _Recomputed(torch.autograd.Function):
    """A call without its graph. Its backward is a call of `_Pullback`, which autograd can differentiate."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return call.first(tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Pullback.apply(ctx.call, *ctx.saved_tensors, *grads)


class _Pullback(torch.autograd.Function):
    """(inputs, gradients of the outputs) -> gradients of the inputs."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return _pulled_back(call, [tensor.detach() for tensor in tensors], create_graph=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        gradients, leaves = _pulled_back(ctx.call, leaves, create_graph=True)
        return None, *product(gradients, leaves, cotangents)


def _pulled_back(call: _Call, tensors: list[Tensor], *, create_graph: bool) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    inputs, weights = [tensor.requires_grad_() for tensor in tensors[: call.count]], tensors[call.count :]
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            call.again(inputs),
            inputs,
            weights,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return gradients, [*inputs, *weights]
