"""MetaInit: weight norms for which the gradient hardly changes along a gradient step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from momentumnet.init.attempt import all_or_nothing
from momentumnet.init.composite_norms import composite_norms
from momentumnet.init.report import InitReport, norm_of, norms_of, scales_between
from momentumnet.loss.batches import Batch, LossFunction, endless
from momentumnet.loss.derivatives import (
    ParametricLoss,
    Vectors,
    as_real,
    gradient_of,
    inner_products,
    norm,
    twice_differentiable,
)
from momentumnet.options import is_finite, positive, true_or_false, whole
from momentumnet.progress import steps_with_progress


def metainit_(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Batch],
    *,
    steps: int = 500,
    lr: float = 0.1,
    momentum: float = 0.9,
    eps: float = 1e-5,
    progress: bool = True,
) -> InitReport:
    r"""Learn the norm of each weight tensor so that the gradient quotient is small.

    Of every trainable parameter w with two dimensions or more only the norm r moves; its direction stays. A step of
    signed gradient descent with momentum on the gradient quotient GQ (see `gradient_quotient`):

        u <- momentum u - lr sign(<w, dGQ/dw> / r);  w <- w (r + u) / r

    Vectors (biases, norm layers' weights), frozen parameters and buffers stay as they are, and so does the training
    mode. The paper sets biases to zero and runs in eval mode, on noise with random labels: batches of that kind do as
    well as real ones. In half precision the quotient is mostly rounding where gradients are small: initialise in
    float32, and cast then. A norm that a step takes below zero turns its tensor's sign around, as in the paper's code.

    Args:
        model: any module whose output the loss function takes; converted networks too. Dropout draws from the global
            generators: seed them for a run that can be repeated.
        loss_fn: ``loss_fn(model_output, target)``, a scalar with three derivatives.
        batches: ``(inputs, target)`` pairs on the model's device, gone through again and again; inputs are a tensor, a
            tuple (positional) or a dict (keywords).
        steps: how many.
        lr: by how much a norm moves in the first step.
        momentum: in [0, 1).
        eps: keeps the quotient finite where the gradient is zero.
        progress: show a bar on terminals.

    Returns:
        The scale of each parameter, and the gradient quotient and the norm of the loss's gradient in each step.

    Raises:
        ValueError: an option has a value that it does not take, nothing is trainable, or the model uses
            ``torch.utils.checkpoint``, which would read its own weights in the place of the scaled ones.
        FloatingPointError: the gradient quotient, or a gradient, is infinite or not a number. The model is then as it
            was, as after every other exception.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from momentumnet.init import metainit_
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        >>> batches = [(torch.randn(32, 8), torch.randint(4, (32,)))]
        >>> report = metainit_(model, nn.CrossEntropyLoss(), batches, steps=20)
        >>> len(report.losses)
        20

    References:
        Dauphin, Schoenholz: MetaInit: Initializing learning by learning to initialize, NeurIPS 2019, equation 1 and
        algorithm 1.
    """
    whole("steps", steps)
    positive("lr", lr)
    positive("eps", eps)
    true_or_false(progress=progress)
    if not (is_finite(momentum) and 0 <= momentum < 1):
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")
    loss, data, before = ParametricLoss(model, loss_fn), endless(batches), norms_of(model)
    weights = {
        index: ScaledWeight(parameter) for index, parameter in enumerate(loss.parameters) if parameter.dim() >= 2
    }
    if not weights:
        raise ValueError("no trainable parameter has two dimensions or more, so MetaInit has no norm to learn")
    velocities = dict.fromkeys(weights, 0.0)
    quotients, gradient_norms = [], []
    with all_or_nothing(model), twice_differentiable(model), composite_norms(model):
        for step in steps_with_progress(steps, "MetaInit", progress=progress):
            theta = loss.leaves()
            quotient, gradient = differentiable_quotient(loss, theta, next(data), eps)
            slopes = inner_products(gradient_of(quotient, theta), theta)
            quotients.append(float(quotient.detach()))
            gradient_norms.append(norm(gradient, 2))
            _check(step, quotients[-1], slopes)
            signs = slopes.sign().tolist()
            for index, weight in weights.items():
                velocities[index] = momentum * velocities[index] - lr * signs[index]
                weight.change_norm(velocities[index])
    return InitReport("metainit", scales_between(before, norms_of(model)), tuple(quotients), tuple(gradient_norms))


def gradient_quotient(model: nn.Module, loss_fn: LossFunction, batch: Batch, *, eps: float = 1e-5) -> float:
    r"""How much the gradient changes, relatively, along a gradient step of size one.

        GQ = 1/N sum_i | (g_i - (H g)_i) / (g_i + eps s_i) - 1 |,  s_i = 1 where g_i >= 0, else -1

    with the gradient g and the Hessian H of the loss with respect to the N numbers in the model's trainable parameters.
    It is zero where the loss is linear.

    Args:
        model: any module; it is left as it is.
        loss_fn: ``loss_fn(model_output, target)``, a scalar.
        batch: ``(inputs, target)``.
        eps: keeps the quotient finite where the gradient is zero.

    Returns:
        The gradient quotient.

    Raises:
        ValueError: nothing is trainable, or ``eps`` is not positive.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model, x = nn.Linear(3, 1), torch.randn(5, 3)
        >>> gradient_quotient(model, lambda output, target: output.mean(), (x, None), eps=1e-12) < 1e-6
        True

    References:
        Dauphin, Schoenholz, NeurIPS 2019, equation 1.
    """
    positive("eps", eps)
    loss = ParametricLoss(model, loss_fn)
    with twice_differentiable(model), composite_norms(model):
        return float(differentiable_quotient(loss, loss.leaves(), batch, eps)[0].detach())


def differentiable_quotient(loss: ParametricLoss, theta: Vectors, batch: Batch, eps: float) -> tuple[Tensor, Vectors]:
    """The gradient quotient with its graph, and the gradient."""
    gradient = gradient_of(loss(theta, batch), theta, create_graph=True)
    # H g is the gradient of |g|^2 / 2.
    half_square = torch.stack([as_real(g).square().sum().to(theta[0].device) for g in gradient]).sum() / 2
    curved = gradient_of(half_square, theta, create_graph=True)
    terms = []
    for g, hg in zip(map(as_real, gradient), map(as_real, curved), strict=True):
        sign = torch.where(g.detach() >= 0, 1.0, -1.0).to(g.dtype)
        terms.append(((g - hg) / (g + eps * sign) - 1).abs().sum().to(theta[0].device))
    count = sum(as_real(tensor).numel() for tensor in theta)
    return torch.stack(terms).sum() / count, [g.detach() for g in gradient]


class ScaledWeight:
    """A weight as a norm times the tensor that it was, so that half precision is rounded once and not in each step."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter, self._initial = parameter, parameter.detach().clone()
        self._size = self._norm = float(norm_of(parameter))

    def change_norm(self, change: float) -> None:
        if not self._norm:  # a tensor of zeros has no direction to keep
            return
        self._norm = math.copysign(1.0, self._norm) * (abs(self._norm) + change)
        with torch.no_grad():
            self._parameter.copy_(self._initial * (self._norm / self._size))


def _check(step: int, quotient: float, slopes: Tensor) -> None:
    if not math.isfinite(quotient) or not bool(torch.isfinite(slopes).all()):
        raise FloatingPointError(
            f"metainit_, step {step + 1}: the gradient quotient is {quotient}, or its gradient is not finite; the "
            "model is left as it was. Start from smaller weights, or lower lr"
        )
