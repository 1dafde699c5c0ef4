"""How the benchmarks of trainings train CIFAR's networks: SGD with momentum and a cosine schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from momentumnet.bench.images import ImageData

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CLIP = 1.0  # norm of the gradient in networks without normalisation


@dataclass(frozen=True)
class Recipe:
    """How the networks of a benchmark are trained.

    Attributes:
        epochs: Epochs of the cosine schedule.
        batch_size: Images per step.
        lr: Learning rate of SGD at the schedule's beginning.
    """

    epochs: int
    batch_size: int
    lr: float


def sgd_options(lr: float) -> dict[str, Any]:
    """The options of SGD, beside the parameters."""
    return {"lr": lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}


def is_normalised(model: nn.Module) -> bool:
    """Whether there is batch normalisation. Asked of the model: an initialisation may have taken it out."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Matrices and vectors, as in GradInit's own runs.

    Vectors are not decayed beside normalisation, and learn at lr / 10 without it.
    """
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    special = {"weight_decay": 0.0} if is_normalised(model) else {"lr": lr / 10}
    return [{"params": matrices}, {"params": vectors, **special}]


def settings(data: ImageData, recipe: Recipe) -> dict[str, Any]:
    """What makes the rows comparable: images, the recipe's attributes, and what all trainings have in common."""
    return {
        "data": data.name,
        "images": list(data.x_train.shape[1:]),
        "train_samples": len(data.x_train),
        "test_samples": len(data.x_test),
        "augmented": data.augmented,
        **vars(recipe),
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
    }


def described(settings: dict[str, Any]) -> str:
    """The `settings` in words, for below a table."""
    return (
        f"{settings['data']}, {settings['train_samples']} training and {settings['test_samples']} test images of "
        f"{settings['images'][1]} x {settings['images'][2]}; epochs: {settings['epochs']}; SGD, batch "
        f"{settings['batch_size']}, momentum {settings['momentum']}, learning rate {settings['lr']} falling as a "
        f"cosine, weight decay {settings['weight_decay']:g}; without batch normalisation gradients are clipped at norm "
        f"{settings['clip']:g} and biases learn at a tenth of the rate."
    )
