"""Curvature: the largest eigenvalues of the Hessian of the loss."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.landscape.directions import seeded
from momentumnet.landscape.lanczos import largest_eigenvalues
from momentumnet.landscape.surface import measured
from momentumnet.loss.batches import LossFunction
from momentumnet.loss.derivatives import twice_differentiable
from momentumnet.options import positive, whole


def hessian_top_eigenvalues(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    k: int = 1,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The k algebraically largest eigenvalues of the Hessian of the loss by the trainable parameters.

    .. math::
        \nabla^2_w L(w)\, y_i = \lambda_i y_i, \qquad \lambda_1 \ge \dots \ge \lambda_k

    By Lanczos' method with full reorthogonalisation, from k random vectors at once (so an eigenvalue is found as often
    as the Hessian has it, up to k times), on products of the Hessian with vectors (Pearlmutter, *Fast exact
    multiplication by the Hessian*, Neural Computation 1994). The largest are meant algebraically, as where sharpness is
    reported: a negative eigenvalue is not among them, however large.

    Measured in the mode that the model is in (`sharpness` says more), and the model is left as it was, bit for bit.
    Frozen parameters count as constants. Costs one gradient, whose graph is kept, and for each product a backward pass
    through it and a vector of the parameters' size. With ``chunk`` the gradient is made again for each product, in the
    memory of a chunk.

    Args:
        model: Any module, converted or not.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar.
        batch: ``(inputs, targets)``; inputs are a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        k: How many.
        iterations: Most products with the Hessian.
        tolerance: A value has converged when its residual, ``||H y - value y||``, is at most this times the value. The
            value itself is then closer still: by the residual's square over the distance to the next eigenvalue.
        chunk: Takes so many samples at a time; exact for a loss that is a mean over samples.
        generator: Draws the starting vectors; by default one with seed 0.

    Returns:
        Shape (k,), float64, on the CPU, descending.

    Warns:
        RuntimeWarning: Not converged after ``iterations`` products. The values returned are lower bounds.

    Raises:
        MomentumNetError: The loss or a product is NaN or infinite, or a trainable parameter does not enter the loss.
        TypeError: The batch is no pair.
        ValueError: An option cannot be, k is larger than the number of parameters, none is trainable, or the model uses
            ``torch.utils.checkpoint``.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1)
        >>> values = hessian_top_eigenvalues(model, lambda output, y: (output - y).square().sum(), data, 2)
        >>> [round(value, 3) for value in values.tolist()]  # of diag(2, 18)
        [18.0, 2.0]
    """
    whole("k", k)
    whole("iterations", iterations)
    positive("tolerance", tolerance)
    if iterations < k:
        raise ValueError(f"iterations must be at least k, got iterations={iterations} and k={k}")
    with measured(model, loss_fn, batch, chunk) as surface, twice_differentiable(model):
        if k > surface.size:
            raise ValueError(f"k must be at most the number of trainable parameters, {surface.size}, got {k}")
        generator = seeded(generator)
        starts = [surface.random(generator) for _ in range(k)]
        found = largest_eigenvalues(surface.curvature().times, starts, iterations=iterations, tolerance=tolerance)
    if not found.converged:
        residuals = ", ".join(f"{residual:.2g}" for residual in found.residuals.tolist())
        warnings.warn(
            f"momentumnet: the Hessian's eigenvalues {[float(f'{value:.6g}') for value in found.values.tolist()]} have "
            f"residuals {residuals} after {found.products} products, above tolerance={tolerance:g} times the value; "
            "they are lower bounds. Raise iterations or tolerance",
            RuntimeWarning,
            stacklevel=2,
        )
    return found.values
