"""The loss on one batch as a function of a move away from the model's parameters. Measured without leaving a mark.

The parameters are never written to: the model is called with others in their place (`torch.func.functional_call`), so
an error in the middle of a measurement leaves them as they are too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.errors import MomentumNetError
from momentumnet.listing import listed
from momentumnet.loss.batches import LossFunction, pair
from momentumnet.loss.derivatives import Gradient, ParametricLoss, Vectors
from momentumnet.loss.samples import chunks
from momentumnet.options import whole
from momentumnet.recompute.surroundings.generators import Generators
from momentumnet.streams.blocks.converted import streams_of
from momentumnet.streams.tracing.guard import left_as_found


class LossSurface:
    """``e -> L(w + e)`` for one batch, w being the trainable parameters of the model, each once.

    A move e is one flat vector, in float32 or the parameters' dtype where that is wider. Every evaluation draws the
    same random numbers, so with dropout too it is one function that is measured.

    Args:
        model: any module.
        loss_fn: ``loss_fn(model_output, target)``, a scalar.
        batch: ``(inputs, target)``.
        chunk: None takes the whole batch at once; a number takes that many samples at a time.

    Raises:
        TypeError: the batch is no pair.
        ValueError: no parameter is trainable, one of them is complex, ``chunk`` is no positive number.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, batch: Any, chunk: int | None) -> None:
        if chunk is not None:
            whole("chunk", chunk)
        self._function = ParametricLoss(model, loss_fn)
        self._batch, self._chunk = pair(batch), chunk
        self.names, self.parameters = self._function.names, self._function.parameters
        complex_ones = [name for name, p in zip(self.names, self.parameters, strict=True) if p.is_complex()]
        if complex_ones:
            raise ValueError(
                f"complex parameters cannot be measured: {listed(complex_ones)}; freeze them, or make them real"
            )
        self.device = self.parameters[0].device
        self.dtype = reduce(torch.promote_types, (p.dtype for p in self.parameters), torch.float32)
        self.size = sum(p.numel() for p in self.parameters)
        self._start = Generators(*{p.device for p in self.parameters})

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors in the shapes of the parameters as one vector."""
        return torch.cat([tensor.detach().to(self.device, self.dtype).flatten() for tensor in tensors])

    def value(self, move: Tensor) -> float:
        """``L(w + e)``."""
        theta = self._at(move)
        parts = [(self._batch, 1.0)] if self._chunk is None else chunks(self._batch, self._chunk)
        with torch.no_grad(), self._start.replayed():
            return sum(share * float(self._function(theta, part)) for part, share in parts)

    def gradient(self, move: Tensor) -> tuple[float, Tensor]:
        """``L(w + e)`` and its derivative with respect to e.

        Raises:
            MomentumNetError: the loss is NaN or infinite, or depends on none of the parameters.
        """
        gradient = self._differentiated(move, products=False)
        return gradient.loss, self.flat(gradient.value)

    def curvature(self) -> Curvature:
        """The Hessian of L at w.

        Raises:
            MomentumNetError: the loss is NaN or infinite, or does not depend on one of the parameters.
        """
        gradient = self._differentiated(self.zero(), products=True)
        outside = [name for name, reached in zip(self.names, gradient.reached, strict=True) if not reached]
        if outside:
            raise MomentumNetError(
                f"the loss does not depend on {len(outside)} of the trainable parameters: {listed(outside)}. Freeze "
                "them (requires_grad_(False)), or look for what cuts the graph (detach, no_grad)"
            )
        return Curvature(self, gradient)

    def zero(self) -> Tensor:
        """The move that leads nowhere."""
        return torch.zeros(self.size, device=self.device, dtype=self.dtype)

    def random(self, generator: torch.Generator) -> Tensor:
        """A Gaussian vector."""
        drawn = torch.randn(self.size, generator=generator, device=generator.device, dtype=self.dtype)
        return drawn.to(self.device)

    def split(self, vector: Tensor) -> Vectors:
        """The parts of a flat vector in the parameters' shapes, on their devices."""
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view(p.shape).to(p.device) for part, p in zip(parts, self.parameters, strict=True)]

    def _at(self, move: Tensor) -> Vectors:
        """w + e, as leaves that gradients are taken with respect to."""
        pairs = zip(self.parameters, self.split(move), strict=True)
        return [(p.detach() + part).to(p.dtype).requires_grad_() for p, part in pairs]

    def _differentiated(self, move: Tensor, *, products: bool) -> Gradient:
        with self._start.replayed():
            gradient = Gradient(self._function, self._at(move), self._batch, chunk=self._chunk, products=products)
        if not math.isfinite(gradient.loss):
            raise MomentumNetError(
                f"the loss is {gradient.loss} {'at a point of the ball' if bool(move.any()) else 'at the parameters'}; "
                "check the model and the batch, and take a smaller radius if there is one"
            )
        if not any(gradient.reached):
            raise MomentumNetError(
                "the loss depends on none of the trainable parameters; look for what cuts the graph (detach, no_grad)"
            )
        return gradient


class Curvature:
    """Products of the Hessian of a loss with vectors (Pearlmutter 1994), by differentiating the gradient once more."""

    def __init__(self, surface: LossSurface, gradient: Gradient) -> None:
        self._surface, self._gradient = surface, gradient

    def times(self, vector: Tensor) -> Tensor:
        """``H v``, flat like ``v``."""
        return self._surface.flat(self._gradient.times(self._surface.split(vector), keep_graph=True))


@contextmanager
def measured(model: nn.Module, loss_fn: LossFunction, batch: Any, chunk: int | None) -> Iterator[LossSurface]:
    """The loss surface of a model that is left as found: parameters, buffers, gradients, mode, generators, scales."""
    surface = LossSurface(model, loss_fn, batch, chunk)
    tensors = [leaf for leaf in pytree.tree_leaves(tuple(batch)) if isinstance(leaf, Tensor)]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(left_as_found(model, tensors, eval_mode=False))
        for stream in streams_of(model):
            stack.enter_context(stream.scale_kept())
        yield surface
