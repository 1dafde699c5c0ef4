"""How the benchmarks of trainings train CIFAR's networks: SGD with momentum and a cosine schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LRScheduler

from momentumnet.bench.data.images import ImageData
from momentumnet.optim import warmup

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


def warm_cosine(optimizer: Optimizer, steps: int, *, warm_steps: int = 0, start_step: int = 0) -> LRScheduler:
    """A rate that rises linearly for some steps and then falls as a cosine, from any of its steps on.

    The rate of step t = 0, 1, ... is the full one times (t + 1) / (warm_steps + 1) below ``warm_steps``, and then
    (1 + cos(pi (t - warm_steps) / (steps - warm_steps))) / 2.

    Args:
        optimizer: Newly made; its rates are the full ones.
        steps: Steps in all, those before ``start_step`` included.
        warm_steps: Those below the full rate (`momentumnet.optim.warmup`), fewer than ``steps``.
        start_step: The step at which the optimizer begins.
    """
    return _warmed(optimizer, steps, warm_steps, start_step, lambda own, left: CosineAnnealingLR(own, left))


def warm_then_constant(optimizer: Optimizer, steps: int, *, warm_steps: int = 0, start_step: int = 0) -> LRScheduler:
    """As `warm_cosine`, but that the rate stays the full one once it is."""
    return _warmed(optimizer, steps, warm_steps, start_step, lambda own, left: ConstantLR(own, 1.0, total_iters=left))


def _warmed(
    optimizer: Optimizer,
    steps: int,
    warm_steps: int,
    start_step: int,
    after: Callable[[Optimizer, int], LRScheduler],
) -> LRScheduler:
    # Schedulers that follow one another cannot begin in their middle: their factors are read off beforehand.
    counter = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = after(counter, steps - warm_steps)
    if warm_steps:
        scheduler = warmup(counter, warm_steps, after=scheduler)
    factors: list[float] = []
    for _ in range(steps + 1):
        factors.append(float(scheduler.get_last_lr()[0]))
        counter.step()
        scheduler.step()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, lambda step: factors[step], last_epoch=start_step - 1)


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
        f"{images_described(settings)}; SGD, batch "
        f"{settings['batch_size']}, momentum {settings['momentum']}, learning rate {settings['lr']} falling as a "
        f"cosine, weight decay {settings['weight_decay']:g}; without batch normalisation gradients are clipped at norm "
        f"{settings['clip']:g} and biases learn at a tenth of the rate."
    )


def images_described(settings: dict[str, Any]) -> str:
    """Images and epochs of the `settings` in words."""
    return (
        f"{settings['data']}, {settings['train_samples']} training and {settings['test_samples']} test images of "
        f"{settings['images'][1]} x {settings['images'][2]}; epochs: {settings['epochs']}"
    )
