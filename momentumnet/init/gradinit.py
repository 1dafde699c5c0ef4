"""GradInit: a scale for each parameter tensor, for which the optimizer's first step lowers the loss the most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from momentumnet.init.attempt import all_or_nothing
from momentumnet.init.first_step import FirstStep
from momentumnet.init.overlap import overlapping
from momentumnet.init.recompute import blocks_of, recomputed
from momentumnet.init.report import InitReport, norms_of, scales_between
from momentumnet.loss.batches import Batch, LossFunction, endless
from momentumnet.loss.derivatives import (
    Gradient,
    ParametricLoss,
    Vectors,
    inner_products,
    norm,
    twice_differentiable,
)
from momentumnet.options import positive, true_or_false, whole
from momentumnet.progress import steps_with_progress

# Each scale's derivative is clipped to this before Adam sees it, as in the authors' code.
_LARGEST_SLOPE = 1.0


def gradinit_(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    optimizer: str = "sgd",
    step_size: float | None = None,
    gradient_norm: float = 1.0,
    lr: float = 1e-3,
    steps: int = 390,
    min_scale: float = 0.01,
    chunk: int | None = None,
    checkpoint: bool = False,
    progress: bool = True,
) -> InitReport:
    r"""Learn a scale for each parameter tensor so that the loss after the optimizer's first step is small.

        minimise over m   L(theta_m - eta A[g]; S2)   subject to   ||g||_p <= gamma,   g = grad L(theta_m; S1)

    theta_m are the trainable parameters, each times its scale m_i >= ``min_scale``; A[g] = g and p = 2 for SGD,
    A[g] = sign(g) and p = 1 for Adam. Each step draws S1 and computes g. If ||g||_p > gamma it goes down the gradient
    of ||g||_p; otherwise it draws fresh samples for the second half of S2, whose first half is that of S1, and goes
    down the gradient of the loss after the step. Both by Adam (a pair of moments for each case), each derivative
    clipped to 1. The gradient goes through A for SGD, which needs second derivatives; sign has none that are not zero.

    Frozen parameters and buffers stay as they are, and so does the training mode: batch normalisation in training
    mode takes the statistics of the batch and leaves the running ones. A tied parameter has one scale. A parameter
    that is zero stays zero.

    Args:
        model: any module whose output the loss function takes; converted networks too. Dropout draws from the global
            generators: seed them for a run that can be repeated.
        loss_fn: ``loss_fn(model_output, target)``, a scalar, the mean over the samples if ``chunk`` splits the batch.
        batches: ``(inputs, target)`` pairs on the model's device, gone through again and again; inputs are a tensor, a
            tuple (positional) or a dict (keywords). Samples lie along dimension 0.
        optimizer: "sgd" or "adam": for whose first step the scales are learned.
        step_size: eta; 0.1 for SGD and 1e-3 for Adam unless given.
        gradient_norm: gamma, the largest norm of the gradient.
        lr: step size of the scales (tau in the paper).
        steps: how many.
        min_scale: no scale goes below it.
        chunk: split batches into parts of at most this many samples: memory of one part, the same result (batch
            normalisation takes the statistics of a part), one more forward and backward pass a step. None: no split.
        checkpoint: compute a block's activations again where they are needed, in backward and in the second
            derivative, instead of keeping them. Blocks are those of the residual streams and the modules beside them.
        progress: show a bar on terminals.

    Returns:
        The scale of each parameter; ``losses``, the loss after the step in each iteration that met the constraint, and
        ``gradient_norms``, ||g||_p in every iteration.

    Raises:
        ValueError: an option has a value that it does not take, nothing is trainable, batches cannot be joined, or the
            model uses ``torch.utils.checkpoint``, which would read its own weights in the place of the scaled ones.
        FloatingPointError: the loss, the gradient's norm or a derivative is infinite or not a number. The model is then
            as it was, as after every other exception.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from momentumnet.init import gradinit_
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> batches = [(torch.randn(32, 8), torch.randint(4, (32,))) for _ in range(3)]
        >>> report = gradinit_(model, nn.CrossEntropyLoss(), batches, steps=20)
        >>> len(report.gradient_norms)
        20

    References:
        Zhu, Ni, Xu, Kong, Huang, Goldstein: GradInit: Learning to initialize neural networks for stable and efficient
        training, NeurIPS 2021, arXiv 2102.08098, equation 1 and algorithm 1.
    """
    true_or_false(checkpoint=checkpoint, progress=progress)
    rule = FirstStep.of(optimizer, step_size)
    for name, value in (("gradient_norm", gradient_norm), ("lr", lr), ("min_scale", min_scale)):
        positive(name, value)
    whole("steps", steps)
    if chunk is not None:
        whole("chunk", chunk)
    loss, data, before = ParametricLoss(model, loss_fn), endless(batches), norms_of(model)
    losses, norms = [], []
    with all_or_nothing(model), ExitStack() as stack:
        stack.enter_context(twice_differentiable(model))
        if checkpoint:
            example = next(data)
            data = chain([example], data)
            stack.enter_context(recomputed(blocks_of(model, example)))
        scales = Scales(loss, lr=lr, smallest=min_scale)
        for step in steps_with_progress(steps, "GradInit", progress=progress):
            iteration = _iterate(loss, scales.scaled(), data, rule, gradient_norm, chunk)
            iteration.check(step)
            norms.append(iteration.gradient_norm)
            if iteration.objective is not None:
                losses.append(iteration.objective)
            scales.move(scales.slopes(iteration.derivative), constraint=iteration.objective is None)
        scales.write()
    met = f"the gradient's norm was at most {gradient_norm:g} in {len(losses)} of {steps} steps"
    return InitReport("gradinit", scales_between(before, norms_of(model)), tuple(losses), tuple(norms), (met,))


@dataclass(frozen=True)
class _Iteration:
    """What one iteration found.

    Attributes:
        gradient_norm: ||g||_p.
        objective: the loss after the first step; None where the constraint was violated.
        derivative: of the one or the other, with respect to theta.
    """

    gradient_norm: float
    objective: float | None
    derivative: Vectors

    def check(self, step: int) -> None:
        """Raises FloatingPointError where a figure is not finite."""
        figures = {"norm of the gradient": self.gradient_norm}
        if self.objective is not None:
            figures["loss after the first step"] = self.objective
        figures["norm of the derivative"] = norm(self.derivative, 2)
        for what, value in figures.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"gradinit_, step {step + 1}: the {what} is {value}; the model is left as it was. Lower step_size "
                    "or lr, or start from smaller weights"
                )


def _iterate(
    loss: ParametricLoss, theta: Vectors, data: Iterator[Batch], rule: FirstStep, bound: float, chunk: int | None
) -> _Iteration:
    """One iteration of Algorithm 1, up to the move of the scales."""
    first = next(data)
    gradient = Gradient(loss, theta, first, chunk=chunk, products=True)
    size = norm(gradient.value, rule.order)
    if not size <= bound:
        if math.isfinite(size):
            return _Iteration(size, None, gradient.times(rule.norm_derivative(gradient.value, size)))
        return _Iteration(size, None, gradient.value)
    second = overlapping(first, next(data))
    return _Iteration(size, *after_first_step(loss, theta, gradient, second, rule, chunk=chunk))


def after_first_step(
    loss: ParametricLoss, theta: Vectors, gradient: Gradient, batch: Batch, rule: FirstStep, *, chunk: int | None = None
) -> tuple[float, Vectors]:
    """``L(theta - eta A[g(theta)]; batch)`` and its derivative with respect to theta.

    With u the gradient of L at the stepped parameters, the derivative is u - eta H u for SGD and u for Adam.
    """
    if not rule.passes_gradients:
        gradient.forget_graph()
    stepped = [
        (t.detach() - rule.step_size * a).requires_grad_() for t, a in zip(theta, rule(gradient.value), strict=True)
    ]
    after = Gradient(loss, stepped, batch, chunk=chunk)
    derivative = after.value
    if rule.passes_gradients:
        curved = gradient.times(after.value)
        derivative = [u - rule.step_size * hu for u, hu in zip(after.value, curved, strict=True)]
    return after.loss, derivative


class Scales:
    """The scales m of the trainable parameters: theta_i = m_i theta0_i.

    Args:
        loss: whose parameters they scale.
        lr: step size of Adam.
        smallest: no scale goes below it.
    """

    def __init__(self, loss: ParametricLoss, *, lr: float, smallest: float) -> None:
        self._parameters = loss.parameters
        self._initial = [parameter.detach().clone() for parameter in loss.parameters]
        self._smallest = smallest
        self.values = torch.ones(len(self._initial), dtype=torch.float64, requires_grad=True)
        # The two cases go down two functions; the moments of one say nothing of the other.
        self._adam = {constraint: torch.optim.Adam([self.values], lr=lr) for constraint in (True, False)}

    def scaled(self) -> Vectors:
        """theta_m, as leaves that gradients are taken with respect to."""
        pairs = zip(self._initial, self.values.tolist(), strict=True)
        return [(initial * scale).requires_grad_() for initial, scale in pairs]

    def slopes(self, derivative: Vectors) -> Tensor:
        """The derivative with respect to m, from that with respect to theta."""
        return inner_products(derivative, self._initial)

    def move(self, slopes: Tensor, *, constraint: bool) -> None:
        """One step of Adam."""
        self.values.grad = slopes.clamp(-_LARGEST_SLOPE, _LARGEST_SLOPE)
        self._adam[constraint].step()
        with torch.no_grad():
            self.values.clamp_(min=self._smallest)

    def write(self) -> None:
        """Give the model its scaled parameters."""
        with torch.no_grad():
            for parameter, scaled in zip(self._parameters, self.scaled(), strict=True):
                parameter.copy_(scaled)
