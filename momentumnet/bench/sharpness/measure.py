"""One look at a landscape: sharpness by SAM's own step and by several ascents, the Hessian's largest eigenvalues."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet import landscape
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.optimizer_training import RADIUS

EIGENVALUES, PRODUCTS, TOLERANCE = 5, 300, 1e-2


def measure(model: nn.Module, batch: tuple[Tensor, Tensor], ascents: int) -> Row:
    """Looks at the loss of the model on a batch, in eval mode.

    In training mode the loss would be one of the batch's statistics too.

    Args:
        model: Any classifier, converted or not; it is left in eval mode.
        batch: Inputs and classes.
        ascents: From how many points the highest one of the ball is looked for.

    Returns:
        ``first_step``, the rise at the end of SAM's step of length `RADIUS`; ``sharpness``, the rise to the highest
        point found at that distance or below; ``eigenvalues``, the largest ones, descending; ``converged``, whether
        each is known to the `TOLERANCE`; they are lower bounds otherwise.
    """
    model.eval()
    first = landscape.sharpness(model, F.cross_entropy, batch, RADIUS, steps=1)
    highest = landscape.sharpness(model, F.cross_entropy, batch, RADIUS, starts=ascents)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = landscape.hessian_top_eigenvalues(
            model, F.cross_entropy, batch, EIGENVALUES, iterations=PRODUCTS, tolerance=TOLERANCE
        )
    unconverged = [warning for warning in caught if "lower bounds" in str(warning.message)]
    for warning in caught:
        if warning not in unconverged:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return {
        "first_step": first,
        "sharpness": highest,
        "eigenvalues": values.tolist(),
        "converged": not unconverged,
    }
