"""SGD and the optimizers of two passes around it, as the benchmarks of SAM compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from momentumnet.bench.trainings import recipe as shared
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options
from momentumnet.optim import SAM, Extragradient


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained, and how far SAM looks.

    Attributes:
        rho: Radius of SAM.
    """

    rho: float


@dataclass(frozen=True)
class Method:
    """An optimizer.

    Attributes:
        make: Makes it for a model.
        passes: Forward and backward passes in a step.
        longer: How many times the recipe's epochs it trains.
    """

    make: Callable[[nn.Module, Any], Optimizer]
    passes: int
    longer: int = 1


def sgd(model: nn.Module, recipe: Recipe) -> Optimizer:
    """SGD with momentum."""
    return SGD(parameter_groups(model, recipe.lr), **sgd_options(recipe.lr))


def extragradient(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Extragradient around `sgd`, which looks ahead by the learning rate."""
    return Extragradient(parameter_groups(model, recipe.lr), SGD, model=model, **sgd_options(recipe.lr))


def sam(model: nn.Module, recipe: Recipe) -> Optimizer:
    """SAM around `sgd`."""
    return SAM(parameter_groups(model, recipe.lr), SGD, rho=recipe.rho, model=model, **sgd_options(recipe.lr))
