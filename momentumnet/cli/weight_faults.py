"""Why weights do not fit a network, in the few names that matter, and which network they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

SHOWN = 3


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
    return "; ".join(f"{what} {_few(names)}" for what, names in parts if names)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def fitting(state: Mapping[str, Tensor], asked: str) -> str:
    """A hint at the torchvision classifiers of the same kind whose names and shapes these are, but for the head's."""
    family = [name for name in list_models(module=torchvision.models) if name != asked]
    names = [name for name in family if _fits(name, state)]
    return f". They fit --model {' or '.join(names[:SHOWN])}" if names else ""


def _fits(name: str, state: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        own = get_model(name, weights=None).state_dict()
    if own.keys() != state.keys():
        return False
    return sum(own[key].shape != value.shape for key, value in state.items()) <= 2  # weight and bias of the head
