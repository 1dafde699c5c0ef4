"""The optimizers that ``bench sam`` compares, and how long each of them trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer

from momentumnet.bench.trainings import optimizers
from momentumnet.bench.trainings.optimizers import Method
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options
from momentumnet.optim import SAM


@dataclass(frozen=True)
class Recipe(optimizers.Recipe):
    """How the networks are trained, and how far SAM looks.

    Attributes:
        asam_rho: Radius of adaptive SAM.
    """

    asam_rho: float


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
    "sgd": Method(optimizers.sgd, passes=1),
    "sgd_2x": Method(optimizers.sgd, passes=1, longer=2),
    "extragradient": Method(optimizers.extragradient, passes=2),
    "sam": Method(optimizers.sam, passes=2),
    "asam": Method(_asam, passes=2),
}
