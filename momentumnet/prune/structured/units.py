"""Units of many weights (channels, blocks): their scores, and masks that take whole ones away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from momentumnet.prune.masking.masks import Masks


def mean_scores(
    names: Sequence[str],
    scores: Mapping[str, Tensor],
    previous: Mapping[str, Tensor] | None,
    shapes: Mapping[str, torch.Size],
    *,
    units: int,
) -> Tensor:
    """The mean score of each unit over those of its weights that are left.

    Args:
        names: Weights that belong to the units; each is cut along its first dimension into ``units`` equal parts.
        scores: By weight.
        previous: Masks on them; a weight that is gone counts for nothing. None is nothing gone.
        shapes: Of the weights.
        units: Number of units.

    Returns:
        (units,), float64, on the CPU; 0 for a unit of which nothing is left.

    Raises:
        ValueError: the scores of a weight are missing or have another shape.
    """
    total, count = torch.zeros(units, dtype=torch.float64), torch.zeros(units, dtype=torch.float64)
    for name in names:
        if name not in scores:
            raise ValueError(f"scores lack {name!r}, by which units are chosen; pass those of magnitude_scores(model)")
        score = scores[name].detach().double().cpu()
        if score.shape != shapes[name]:
            raise ValueError(
                f"the scores of {name!r} must have the weight's shape {tuple(shapes[name])}, got {tuple(score.shape)}"
            )
        left = torch.ones_like(score, dtype=torch.bool) if previous is None else previous[name].cpu()
        total += score.where(left, 0).reshape(units, -1).sum(1)
        count += left.reshape(units, -1).sum(1)
    return total / count.clamp(min=1)


def check_whole(masks: Mapping[str, Tensor], whole: Masks, what: str) -> None:
    """Raises ``ValueError`` where masks are not the ``whole`` ones that their units would have."""
    missing, unknown = sorted(whole.keys() - masks.keys()), sorted(masks.keys() - whole.keys())
    if missing or unknown:
        raise ValueError(
            f"masks of {what} must have the names that prune() gives: they lack {missing[:10]}, have {unknown[:10]} "
            "besides"
        )
    for name, mask in whole.items():
        if not torch.equal(masks[name].cpu(), mask.cpu()):
            raise ValueError(f"the mask of {name!r} does not take away whole {what}; pass masks that prune() gave")
