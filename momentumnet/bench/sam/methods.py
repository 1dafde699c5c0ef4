"""The optimizers that ``bench sam`` compares, and how long each of them trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer

from momentumnet.bench import recipe as shared
from momentumnet.bench.recipe import parameter_groups, sgd_options
from momentumnet.optim import SAM, Extragradient


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


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained, and how far SAM looks.

    Attributes:
        rho: Radius of SAM.
        asam_rho: Radius of adaptive SAM.
    """

    rho: float
    asam_rho: float


def _sgd(model: nn.Module, recipe: Recipe) -> Optimizer:
    return SGD(parameter_groups(model, recipe.lr), **sgd_options(recipe.lr))


def _extragradient(model: nn.Module, recipe: Recipe) -> Optimizer:
    return Extragradient(parameter_groups(model, recipe.lr), SGD, model=model, **sgd_options(recipe.lr))


def _sam(model: nn.Module, recipe: Recipe) -> Optimizer:
    return SAM(parameter_groups(model, recipe.lr), SGD, rho=recipe.rho, model=model, **sgd_options(recipe.lr))


def _asam(model: nn.Module, recipe: Recipe) -> Optimizer:
    # Kwon et al. do not scale the perturbation of biases.
    biases = {parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
    groups = []
    for group in parameter_groups(model, recipe.lr):
        groups.append({**group, "params": [p for p in group["params"] if p not in biases]})
        groups.append({**group, "params": [p for p in group["params"] if p in biases], "adaptive": False})
    groups = [group for group in groups if group["params"]]
    return SAM(groups, SGD, rho=recipe.asam_rho, adaptive=True, model=model, **sgd_options(recipe.lr))


METHODS = {
    "sgd": Method(_sgd, passes=1),
    "sgd_2x": Method(_sgd, passes=1, longer=2),
    "extragradient": Method(_extragradient, passes=2),
    "sam": Method(_sam, passes=2),
    "asam": Method(_asam, passes=2),
}
