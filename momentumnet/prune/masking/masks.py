"""Masks on a model: which of its weights are kept, and the effective weights that follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod

from momentumnet.options import check_names
from momentumnet.planner.plans.batch_watch import watches_in
from momentumnet.prune.masking.parametrization import lift, liftable, put
from momentumnet.prune.masking.places import Place, check_whole, places, places_by_name

Masks = dict[str, Tensor]
"""Dotted parameter name, as in ``named_parameters()`` without masks -> bool tensor of its shape, True where kept."""

_NOT_PRUNABLE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


def prunable(model: nn.Module, *, skip: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that pruning chooses from: matrices and kernels of linear, convolution and attention layers.

    These are the parameters with two or more dimensions, except for

    - those of embeddings (a table that is looked up, not a matrix that is applied; an output layer that shares the
      table counts as embedding) and of norms,
    - those with "bias" or "embed" in their own name (attention's ``bias_k``, ``pos_embed``), and ``weight_g`` of
      ``torch.nn.utils.weight_norm``, the norms of the rows of ``weight_v``,
    - those of integers (quantised weights, which have no gradient),
    - those that have no "weight" in their name and are only broadcast: their first dimension, or all but one, is 1
      (class tokens, layer scales).

    A shared parameter counts once, under its first name. A model with masks gives the same names as without, and the
    parameters under the masks.

    Args:
        model: Any module.
        skip: Dotted names of parameters, or of modules with all that is in them, to leave out.

    Returns:
        Dotted name in the bare model -> parameter, in the order of ``named_parameters()``.

    Raises:
        ValueError: ``skip`` names what the model does not have, a parameter has no shape yet (lazy modules), or the
            model is pruned by ``torch.nn.utils.prune`` already.

    Example:
        >>> list(prunable(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)), skip=["2"]))
        ['0.weight']
    """
    check_names("skip", skip)
    found = places_by_name(model)
    known = {place.name for group in found.values() for place in group} | {name for name, _ in model.named_modules()}
    unknown = sorted(set(skip) - known)
    if unknown:
        raise ValueError(f"skip names {unknown}, which the model does not have; its parameters are {list(found)[:20]}")
    return {
        name: group[0].parameter
        for name, group in found.items()
        if all(_is_weight(place) for place in group) and not any(_within(place, skip) for place in group)
    }


def _within(place: Place, skip: Collection[str]) -> bool:
    return any(name in ("", place.name) or place.name.startswith(f"{name}.") for name in skip)


def _is_weight(place: Place) -> bool:
    parameter = place.parameter
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"parameter {place.name!r} has no shape yet (a lazy module); run the model once first")
    if any(isinstance(hook, BasePruningMethod) for hook in place.module._forward_pre_hooks.values()):
        raise ValueError(
            f"{place.name!r} is pruned by torch.nn.utils.prune, whose masks would count for nothing here; call "
            "torch.nn.utils.prune.remove first, and give the mask to momentumnet.prune.apply_masks to keep it"
        )
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return False
    if parameter.dim() < 2 or isinstance(place.module, _NOT_PRUNABLE) or "bias" in place.own or "embed" in place.own:
        return False
    if place.own.endswith("_g") and hasattr(place.module, f"{place.own[:-2]}_v"):
        return False
    return "weight" in place.own or (parameter.shape[0] > 1 and sum(size > 1 for size in parameter.shape) > 1)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    r"""Put masks on parameters of the model, in place.

    .. math::
        w_{\mathrm{effective}} = w \text{ where the mask is True, } 0 \text{ elsewhere}

    The mask is a parametrization (``torch.nn.utils.parametrize``) of each module that holds the parameter. The
    parameter stays the same object, so optimizers keep it; its values under the mask stay as they are but reach
    nothing, not even as NaN, and their gradients are zero. A parameter that has a mask already gets the new one in
    its place; masks on other parameters stay.

    A model with masks can be copied, converted (before or after), wrapped in `DistributedDataParallel` (which makes
    the masks of rank 0 those of all; where PyTorch counts that as a change of the masks, as 2.11 does, several forwards
    before one backward take ``broadcast_buffers=False``) and sharded afterwards. It cannot be pickled as a whole, no
    parametrized module can; its state dict can: it has the parameters under ``parametrizations.<name>.original``, and
    the masks (`dense_state_dict` gives the keys without masks). A mask costs a byte a weight, and each use of the
    weight a copy of it. ``module.weight`` is a result now: to set weights, write to the parameters
    (``model.parameters()``), as optimizers do. A masked parameter comes behind the others of its module in that order,
    by which PyTorch loads the state of an optimizer: make the optimizer on the same side of this call, before or
    behind it, as the one that was saved.

    Args:
        model: Any module.
        masks: For each parameter to mask, by its name in the bare model, a bool tensor of its shape, True where kept.
            They are copied to the parameter's device.

    Raises:
        ValueError: a name, shape or dtype does not fit, or a parameter cannot be masked where it stands (an RNN, which
            keeps its weights in a list of its own; a module that is scripted, sharded, or parametrized already). The
            model is as it was then.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> apply_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> model(torch.tensor([[0.0, 1.0]])).item()
        0.0
    """
    found = places_by_name(model)
    for name, mask in masks.items():
        _check(name, mask, found)
    if masks and not masks_of(model):
        for planned, _, watch in watches_in(model):
            watch.tell_of_masks(planned)
    copies = {name: mask.detach().to(found[name][0].parameter.device, copy=True) for name, mask in masks.items()}
    done: list[tuple[Place, Tensor | None]] = []
    try:
        for name, mask in copies.items():
            for place in found[name]:
                earlier = None if place.mask is None else place.mask.mask
                put(place.module, place.own, mask)
                done.append((place, earlier))
    except BaseException:
        for place, earlier in reversed(done):
            if earlier is None:
                lift(place.module, place.own)
            else:
                put(place.module, place.own, earlier)
        raise


def _check(name: str, mask: Tensor, found: Mapping[str, list[Place]]) -> None:
    if name not in found:
        shared = [first for first, group in found.items() if any(place.name == name for place in group)]
        hint = f"it is shared, and its name is {shared[0]!r}" if shared else f"its parameters are {list(found)[:20]}"
        raise ValueError(f"masks name {name!r}, which is not a parameter of the model; {hint}")
    parameter = found[name][0].parameter
    check_whole("apply_masks", {name: parameter})
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != parameter.shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the mask of {name!r} must be torch.bool of shape {tuple(parameter.shape)}, got {got}")
    for place in found[name]:
        reason = _obstacle(place)
        if reason:
            raise ValueError(
                f"parameter {place.name!r} cannot be masked: {reason}; leave it out (skip=[{place.path or name!r}])"
            )


def _obstacle(place: Place) -> str:
    kind = type(place.module).__name__
    if isinstance(place.module, nn.RNNBase):
        return f"{kind} keeps its weights in a list of its own, which a mask would not reach"
    if isinstance(place.module, torch.jit.ScriptModule):
        return f"{kind} is scripted; apply the masks before scripting"
    if isinstance(place.module, ParametrizationList):
        return "it is parametrized already (weight or spectral norm?); remove that parametrization first"
    return ""


def masks_of(model: nn.Module) -> Masks:
    """The masks on a model, as copies; empty for a model without.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> apply_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> masks_of(model)
        {'weight': tensor([[ True, False]])}
    """
    return {
        name: group[0].mask.mask.clone() for name, group in places_by_name(model).items() if group[0].mask is not None
    }


def remove_masks(model: nn.Module) -> Masks:
    """Make a model with masks an ordinary one that computes the same: zeros in the parameters, no parametrizations.

    Parameters are the same objects as before, in their order; the state dict has its keys back.

    Returns:
        The masks that were removed.

    Raises:
        ValueError: after its mask, a parameter was given another parametrization or was sharded, or its module got
            another class. The model is as it was then.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> apply_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> masks = remove_masks(model)
        >>> model.weight[0, 1].item()
        0.0
    """
    masks = masks_of(model)
    masked = [place for place in places(model) if place.mask is not None]
    check_whole("remove_masks", {place.name: place.parameter for place in masked})
    for place in masked:
        if not liftable(place.module, place.own):
            raise ValueError(
                f"the mask of {place.name!r} cannot be removed: after it, the parameter was given another "
                f"parametrization, or {type(place.module).__name__} was made a subclass; undo that first"
            )
    for place in masked:
        with torch.no_grad():
            place.parameter.masked_fill_(~place.mask.mask, 0)  # type: ignore[union-attr]
        lift(place.module, place.own)
    return masks


def sparsity(masks_or_model: Mapping[str, Tensor] | nn.Module) -> float:
    """The share of elements that masks remove: of the masks given, or of those on a model; 0.0 where there is none.

    Example:
        >>> sparsity({"weight": torch.tensor([True, False, False, False])})
        0.75
    """
    masks = masks_of(masks_or_model) if isinstance(masks_or_model, nn.Module) else masks_or_model
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return (total - kept) / total if total else 0.0
