"""Why weights do not fit a network, in the few names that matter, and which network they fit."""

from __future__ import annotations

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from momentumnet.listing import listed

SHOWN = 3
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def faults(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What is missing, too much or of another shape; empty where the weights fit."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = (("it lacks", missing), ("it has unknown", unknown), ("other shapes", shapes))
    return "; ".join(f"{what} {listed(names, SHOWN)}" for what, names in parts if names)


def fitting(state: Mapping[str, Tensor], asked: str) -> str:
    """A hint at the torchvision classifiers whose weights these are, but for the head's number of classes."""
    count = _with_thousand_classes(state)
    family = [name for name in list_models(module=torchvision.models) if name != asked]
    same = [name for name in family if get_model_weights(name).DEFAULT.meta["num_params"] == count]
    names = [name for name in same if get_model(name, weights=None).state_dict().keys() == state.keys()]
    return f". They fit --model {' or '.join(names[:SHOWN])}" if names else ""


def _with_thousand_classes(state: Mapping[str, Tensor]) -> int:
    """How many parameters the network of these weights has with torchvision's own head, which is its last matrix."""
    learned = {name: value for name, value in state.items() if not name.endswith(BUFFERS)}
    matrices = [value for value in learned.values() if value.dim() == 2]
    if not matrices:
        return 0
    classes, features = matrices[-1].shape
    return sum(value.numel() for value in learned.values()) + (1000 - classes) * (features + 1)
