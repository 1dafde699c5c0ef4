"""Which weights go: scores of weights, and the masks that remove the lowest of them, to the exact number."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from fractions import Fraction
from numbers import Real

import torch
from torch import Tensor, nn

from momentumnet.options import check_generator, check_has_values, one_of
from momentumnet.prune.masking.masks import Masks, masks_of, prunable
from momentumnet.prune.masking.places import check_whole

Scores = dict[str, Tensor]
Shares = float | Fraction | Mapping[str, float | Fraction]  # of all weights, or of each tensor's
SCOPES = ("global", "layer")


def magnitude_scores(model: nn.Module, *, skip: Collection[str] = ()) -> Scores:
    """abs(w) for every weight of `prunable`; 0 for what a mask on the model removes.

    Args:
        model: Any module, with masks or without.
        skip: As in `prunable`.

    Raises:
        ValueError: as `prunable`, or a weight is sharded.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[-2.0, 1.0]]))
        >>> magnitude_scores(model)
        {'weight': tensor([[2., 1.]])}
    """
    check_has_values(model)
    masks, parameters = masks_of(model), prunable(model, skip=skip)
    check_whole("magnitude_scores", parameters)
    scores = {name: parameter.detach().abs() for name, parameter in parameters.items()}
    return {name: score.masked_fill(~masks[name], 0) if name in masks else score for name, score in scores.items()}


def random_scores(model: nn.Module, *, generator: torch.Generator | None, skip: Collection[str] = ()) -> Scores:
    """A number drawn evenly from [0, 1) for every weight of `prunable`.

    Numbers are drawn on the generator's device, so a CPU generator gives the same ones wherever the model is.

    Args:
        model: Any module, with masks or without.
        generator: Where the numbers come from; None is the CPU's global generator.
        skip: As in `prunable`.

    Example:
        >>> scores = random_scores(nn.Linear(2, 3), generator=torch.Generator().manual_seed(0))
        >>> scores["weight"].shape
        torch.Size([3, 2])
    """
    check_generator(generator)
    check_has_values(model)
    device = torch.device("cpu") if generator is None else generator.device
    return {
        name: torch.rand(parameter.shape, generator=generator, device=device, dtype=torch.float32).to(parameter.device)
        for name, parameter in prunable(model, skip=skip).items()
    }


def lowest_masks(
    scores: Mapping[str, Tensor],
    *,
    fraction: Shares,
    scope: str = "global",
    previous: Mapping[str, Tensor] | None = None,
) -> Masks:
    r"""Masks that remove a fraction of the weights: those with the lowest scores.

    Of n weights that ``previous`` keeps,

    .. math::
        \lfloor f n + 1/2 \rfloor

    are removed, where f is the decimal number as it is written (0.35 of 10 is 3.5, and 4 are removed, although the
    float 0.35 lies below it). Equal scores go in the order of the names given, then of the elements in their tensor.
    So the number is exact, and equal scores give equal masks on every process and machine.

    Args:
        scores: By name; floating point, inf and -inf allowed.
        fraction: In [0, 1]. For the scope "layer" also a fraction for each name, all of them.
        scope: "global" compares the scores of all tensors; "layer" removes the fraction of each tensor.
        previous: Masks of the same names; what they remove stays removed, and counts for nothing.

    Returns:
        A mask for each name, on the device of its scores.

    Raises:
        ValueError: an option has a value that it does not take, ``previous`` or ``fraction`` does not have the names
            of the scores, or a score is NaN.

    Example:
        >>> lowest_masks({"w": torch.tensor([3.0, 1.0, 2.0, 1.0])}, fraction=0.5)
        {'w': tensor([ True, False,  True, False])}
    """
    one_of("scope", scope, SCOPES)
    _check_scores(scores)
    kept = _kept(scores, previous)
    if scope == "global":
        if isinstance(fraction, Mapping):
            raise ValueError("a fraction for each name needs scope='layer'; scope='global' takes one number")
        return _without_lowest(scores, kept, _exact(fraction))
    fractions = dict(fraction) if isinstance(fraction, Mapping) else dict.fromkeys(scores, fraction)
    _check_names("fraction", fractions, scores)
    exact = {name: _exact(value) for name, value in fractions.items()}
    return {name: _without_lowest({name: scores[name]}, kept, exact[name])[name] for name in scores}


def magnitude_masks(
    model: nn.Module,
    *,
    fraction: Shares,
    scope: str = "global",
    previous: Mapping[str, Tensor] | None = None,
    skip: Collection[str] = (),
) -> Masks:
    """Masks that remove the weights of smallest magnitude: `lowest_masks` of `magnitude_scores`.

    Example:
        >>> masks = magnitude_masks(nn.Linear(4, 5), fraction=0.25)
        >>> int(masks["weight"].sum())
        15
    """
    return lowest_masks(magnitude_scores(model, skip=skip), fraction=fraction, scope=scope, previous=previous)


def random_masks(
    model: nn.Module,
    *,
    fraction: Shares,
    scope: str = "global",
    previous: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    skip: Collection[str] = (),
) -> Masks:
    """Masks that remove weights at random: `lowest_masks` of `random_scores`.

    Example:
        >>> masks = random_masks(nn.Linear(4, 5), fraction=0.25, generator=torch.Generator().manual_seed(0))
        >>> int(masks["weight"].sum())
        15
    """
    scores = random_scores(model, generator=generator, skip=skip)
    return lowest_masks(scores, fraction=fraction, scope=scope, previous=previous)


def shuffled_masks(masks: Mapping[str, Tensor], *, generator: torch.Generator | None) -> Masks:
    """Masks that keep as many weights in each tensor, at random places: the control for what a ticket's layers explain.

    Args:
        masks: Masks by name.
        generator: Where the permutations come from, as in `random_scores`.

    Example:
        >>> masks = {"w": torch.tensor([True, False, False, False])}
        >>> int(shuffled_masks(masks, generator=torch.Generator().manual_seed(0))["w"].sum())
        1
    """
    check_generator(generator)
    device = torch.device("cpu") if generator is None else generator.device
    shuffled = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator, device=device).to(mask.device)
        shuffled[name] = mask.flatten()[order].view(mask.shape)
    return shuffled


def _check_scores(scores: Mapping[str, Tensor]) -> None:
    for name, score in scores.items():
        if not score.is_floating_point():
            raise ValueError(f"the scores of {name!r} must be floating point, got {score.dtype}")
        if bool(score.isnan().any()):
            raise ValueError(f"the scores of {name!r} hold NaN, which has no order; has training diverged?")


def _check_names(what: str, got: Mapping[str, object], scores: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(scores.keys() - got.keys()), sorted(got.keys() - scores.keys())
    if missing or unknown:
        raise ValueError(f"{what} must have the names of the scores: it lacks {missing}, has {unknown} besides")


def _kept(scores: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> Masks:
    if previous is None:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    _check_names("previous", previous, scores)
    for name, score in scores.items():
        mask = previous[name]
        if mask.dtype != torch.bool or mask.shape != score.shape:
            raise ValueError(
                f"the previous mask of {name!r} must be torch.bool of shape {tuple(score.shape)}, got {mask.dtype} "
                f"of shape {tuple(mask.shape)}"
            )
    return {name: previous[name].to(score.device) for name, score in scores.items()}


def _exact(fraction: float | Fraction) -> Fraction:
    """The number as it is written: 0.1 is a tenth."""
    with suppress(ValueError):  # of the text of nan, inf and True
        exact = Fraction(str(fraction)) if isinstance(fraction, Real) else None
        if exact is not None and 0 <= exact <= 1:
            return exact
    raise ValueError(f"fraction must be a number in [0, 1], got {fraction!r}")


def _without_lowest(scores: Mapping[str, Tensor], kept: Masks, fraction: Fraction) -> Masks:
    """The masks of these scores less the fraction of what they keep."""
    if not scores:
        return {}
    first = next(iter(scores.values()))
    flat = torch.cat([kept[name].flatten().to(first.device) for name in scores])
    # In one dtype that holds all of them exactly; half precision is sorted in single.
    values = torch.cat([score.detach().flatten().to(first.device) for score in scores.values()])
    values = values.float() if values.element_size() < 4 else values
    places = flat.nonzero().squeeze(1)
    count = math.floor(fraction * len(places) + Fraction(1, 2))
    flat[places[_lowest(values[places], count)]] = False
    parts = flat.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape).to(score.device) for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _lowest(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` lowest values are; of equal ones the first."""
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=values.device)
    highest = values.kthvalue(count).values  # selection, not a sort: a sort need not keep the order of equal values
    below = (values < highest).nonzero().squeeze(1)
    equal = (values == highest).nonzero().squeeze(1)
    return torch.cat([below, equal[: count - len(below)]])
