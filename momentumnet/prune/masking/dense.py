"""State dicts of models with masks under the keys of the model without: effective weights out, plain weights in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from momentumnet.prune.masking.places import Place, check_whole, places


def dense_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state dict of the model without masks, its keys in their order, with zeros for the weights that are removed.

    Masked weights are new tensors; the others are the model's own, as in ``state_dict()``.

    Args:
        model: A model with masks (or without: then this is its state dict).

    Raises:
        ValueError: a parameter with a mask is sharded.

    Example:
        >>> import torch
        >>> from momentumnet.prune import apply_masks, dense_state_dict
        >>> model = nn.Linear(2, 1)
        >>> apply_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> list(dense_state_dict(model))
        ['weight', 'bias']
    """
    found = _masked(model)
    state = {}
    for key, value in model.state_dict().items():
        place = found.get(key)
        if place is None:
            state[key] = value
        elif key == _original(place):
            state[place.name] = place.mask(value)  # type: ignore[misc]
    return _in_bare_order(state, model)


def load_dense_state_dict(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict with the keys of the model without masks; the masks stay as they are.

    Values under the masks are loaded too, and stay without effect.

    Args:
        model: A model with masks (or without).
        state: What `dense_state_dict` or ``state_dict()`` of a model without masks gave. Every key must be there.

    Raises:
        ValueError: keys are missing or unknown, a shape differs, or a parameter with a mask is sharded. The model is
            as it was then.

    Example:
        >>> import torch
        >>> from momentumnet.prune import apply_masks, load_dense_state_dict
        >>> model, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> apply_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> load_dense_state_dict(model, other.state_dict())
    """
    found = _masked(model)
    present = model.state_dict()
    keys = {
        place.name if (place := found.get(key)) is not None else key: key
        for key in present
        if key not in found or key == _original(found[key])
    }
    missing, unknown = sorted(keys.keys() - state.keys()), sorted(state.keys() - keys.keys())
    if missing or unknown:
        raise ValueError(f"the state dict is not that of the model without masks: it lacks {missing}, has {unknown}")
    for bare, key in keys.items():
        expected, got = (getattr(value, "shape", None) for value in (present[key], state[bare]))
        if expected != got:
            raise ValueError(f"{bare!r} must have the shape {expected}, got {got}")
    present.update({key: state[bare] for bare, key in keys.items()})
    model.load_state_dict(present)


def _in_bare_order(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The state with each module's own parameters first among what is in it, as they stand without masks."""
    masked = {place.path for place in _masked(model).values()}
    own: dict[str, list[str]] = {}
    for place in places(model, every_path=True):
        if place.path in masked:
            own.setdefault(place.path, []).append(place.name)
    waiting = list(own)
    ordered: dict[str, Any] = {}
    for key in state:
        while waiting and (waiting[0] == "" or key.startswith(f"{waiting[0]}.")):
            ordered.update({name: state[name] for name in own[waiting.pop(0)]})
        ordered.setdefault(key, state[key])
    return ordered


def _masked(model: nn.Module) -> dict[str, Place]:
    """The masked places by each key of theirs in the state dict."""
    masked = [place for place in places(model, every_path=True) if place.mask is not None]
    check_whole("a dense state dict", {place.name: place.parameter for place in masked})
    return {key: place for place in masked for key in (_original(place), _mask(place))}


def _original(place: Place) -> str:
    return f"{_prefix(place)}.original"


def _mask(place: Place) -> str:
    return f"{_prefix(place)}.0.mask"


def _prefix(place: Place) -> str:
    return f"{place.path}.parametrizations.{place.own}" if place.path else f"parametrizations.{place.own}"
