"""The optimizers that ``bench sam`` compares, and how long each of them trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from momentumnet.cli.bench.cifar_training import MOMENTUM, WEIGHT_DECAY, parameter_groups
from momentumnet.optim import SAM, Extragradient


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained.

    Attributes:
        epochs: Epochs of the cosine schedule.
        batch_size: Images per step.
        lr: Learning rate at the schedule's beginning.
        rho: Radius of SAM.
        asam_rho: Radius of adaptive SAM.
    """

    epochs: int
    batch_size: int
    lr: float
    rho: float
    asam_rho: float


@dataclass(frozen=True)
class Method:
    """An optimizer.

    Attributes:
        make: Makes it for a model.
        passes: Forward and backward passes in a step.
        longer: How many times the recipe's epochs it trains.
    """

    make: Callable[[nn.Module, Recipe], Optimizer]
    passes: int
    longer: int = 1


def _sgd(model: nn.Module, recipe: Recipe) -> Optimizer:
    return SGD(parameter_groups(model, recipe.lr), **_options(recipe))


def _extragradient(model: nn.Module, recipe: Recipe) -> Optimizer:
    return Extragradient(parameter_groups(model, recipe.lr), SGD, model=model, **_options(recipe))


def _sam(model: nn.Module, recipe: Recipe) -> Optimizer:
    return SAM(parameter_groups(model, recipe.lr), SGD, rho=recipe.rho, model=model, **_options(recipe))


def _asam(model: nn.Module, recipe: Recipe) -> Optimizer:
    # Kwon et al. do not scale the perturbation of biases.
    biases = {parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
    groups = []
    for group in parameter_groups(model, recipe.lr):
        groups.append({**group, "params": [p for p in group["params"] if p not in biases]})
        groups.append({**group, "params": [p for p in group["params"] if p in biases], "adaptive": False})
    groups = [group for group in groups if group["params"]]
    return SAM(groups, SGD, rho=recipe.asam_rho, adaptive=True, model=model, **_options(recipe))


def _options(recipe: Recipe) -> dict[str, Any]:
    return {"lr": recipe.lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}


METHODS = {
    "sgd": Method(_sgd, passes=1),
    "sgd_2x": Method(_sgd, passes=1, longer=2),
    "extragradient": Method(_extragradient, passes=2),
    "sam": Method(_sam, passes=2),
    "asam": Method(_asam, passes=2),
}
