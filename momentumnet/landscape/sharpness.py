"""Sharpness: by how much the loss rises within a ball around the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.landscape.directions import seeded
from momentumnet.landscape.surface import LossSurface, measured
from momentumnet.loss.batches import LossFunction
from momentumnet.options import positive, true_or_false, whole


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    rho: float = 0.05,
    *,
    steps: int = 20,
    starts: int = 1,
    adaptive: bool = False,
    eta: float = 0.01,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> float:
    r"""By how much the loss rises, at most, within a ball around the parameters; a lower bound of it.

    .. math::
        \max_{\lVert T^{-1} e \rVert_2 \le \rho} L(w + e) - L(w)

    (Foret et al., *Sharpness-Aware Minimization*, ICLR 2021, section 2) with T = 1, or for ``adaptive``
    T = abs(w) + eta by element (Kwon et al., *ASAM*, ICML 2021). The norm is over all trainable parameters; frozen ones
    stay.

    Found by projected gradient ascent from w. With u = T^-1 e and s = T grad L(w + e), a step is

    .. math::
        u \leftarrow P\left(u + p \rho \frac{s}{\lVert s \rVert}\right), \qquad p = 1 \text{ at first}

    P being the projection on the ball. The first step is that of SAM. A step that does not raise the loss is taken
    back, and p is divided by 4; otherwise p is doubled, until the steps are those of the power method,
    u = rho s / norm(s). Whatever the ascent finds is in the ball, so the true maximum is this or more: it is missed
    where the steps end before it, or where another point of the ball, far from the path, is higher. For the latter
    there are ``starts``: further ascents begin at random points of the ball's surface, and the highest point counts.

    Measured in the mode that the model is in: call ``model.eval()`` before for the network that is used in the end. The
    model is left as it was, bit for bit, also if ``loss_fn`` raises. Costs ``steps + 1`` gradients for each start, and
    the memory of a gradient and of about five further vectors of the parameters' size. Parameters of half precision are
    rounded to it at each point, which takes small moves of large weights away (12 % less in a network of 500,000 in
    bfloat16 at rho 0.05): measure a copy in float32.

    Args:
        model: Any module, converted or not.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar.
        batch: ``(inputs, targets)``; inputs are a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        rho: Radius of the ball.
        steps: Most gradients that are taken after the first; the ascent also ends where it no longer moves.
        starts: Ascents: one from w, the others from random points.
        adaptive: The ball of adaptive SAM, larger where weights are larger; use a ``rho`` about ten times larger.
        eta: Added to abs(w) for ``adaptive``.
        chunk: Takes so many samples at a time, for less memory; exact for a loss that is a mean over samples.
        generator: Draws the random points, and a direction where the gradient at w is zero; by default one with seed 0.

    Returns:
        The rise of the loss, 0 or larger.

    Raises:
        MomentumNetError: The loss is NaN or infinite, at w or on the way, or depends on no parameter.
        TypeError: The batch is no pair.
        ValueError: An option cannot be, the model has no trainable parameter, or uses ``torch.utils.checkpoint``, which
            would read its own weights in the place of those at w + e.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.tensor([[3.0, 4.0]]), None
        >>> round(sharpness(model, lambda output, _: output.sum(), data, 0.1), 4)  # rho norm(g)
        0.5
    """
    positive("rho", rho)
    true_or_false(adaptive=adaptive)
    whole("steps", steps)
    whole("starts", starts)
    if adaptive:
        positive("eta", eta)
    with measured(model, loss_fn, batch, chunk) as surface:
        scale = surface.flat(surface.parameters).abs() + eta if adaptive else None
        return _highest_rise(surface, rho, steps, starts, scale, seeded(generator))


def _highest_rise(
    surface: LossSurface, rho: float, steps: int, starts: int, scale: Tensor | None, generator: torch.Generator
) -> float:
    """The highest of the ascents, in u = e / scale."""

    def at(point: Tensor) -> tuple[float, Tensor]:
        value, gradient = surface.gradient(point if scale is None else scale * point)
        return value, gradient if scale is None else scale * gradient

    origin = surface.zero()
    base, slope = at(origin)
    if not slope.any():
        slope = surface.random(generator)
    highest = _ascent(at, origin, base, slope, rho, steps)
    for _ in range(starts - 1):
        drawn = surface.random(generator)
        point = drawn * (rho / float(torch.linalg.vector_norm(drawn)))
        highest = max(highest, _ascent(at, point, *at(point), rho, steps))
    return highest - base


def _ascent(
    at: Callable[[Tensor], tuple[float, Tensor]],
    best: Tensor,
    highest: float,
    slope: Tensor,
    rho: float,
    steps: int,
) -> float:
    """The highest value on the way up from ``best``, where it is ``highest`` with this slope."""
    # Near a maximum the loss is flat to second order, so smaller steps than this are below its rounding.
    smallest = rho * math.sqrt(torch.finfo(best.dtype).eps)
    pace = 1.0
    for _ in range(steps):
        if not slope.any():
            break
        trial = _projected(best + slope * (pace * rho / float(torch.linalg.vector_norm(slope))), rho)
        if float(torch.linalg.vector_norm(trial - best)) <= smallest:
            break
        value, there = at(trial)
        if value > highest:
            best, highest, slope = trial, value, there
            pace *= 2
        else:
            pace /= 4
    return highest


def _projected(point: Tensor, radius: float) -> Tensor:
    norm = float(torch.linalg.vector_norm(point))
    return point * (radius / norm) if norm > radius else point
