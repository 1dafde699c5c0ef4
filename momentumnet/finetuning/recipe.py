"""How a network is trained: optimizer, learning rate over time, precision, and which parameters learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import models
from momentumnet.optim import SAM

BACKBONE = "backbone"
SGD_MOMENTUM = 0.9
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """How to train: how long, how fast, and by which gradients.

    Attributes:
        epochs: Number of epochs in all.
        batch_size: Images per forward pass.
        lr: Largest learning rate.
        seed: Decides the order of the images and the state of the random generators at the start.
        rho: Radius of SAM; None trains without SAM.
        adaptive: Adaptive SAM.
        base: The optimizer, or that inside SAM: ``adamw`` or ``sgd`` (momentum 0.9).
        weight_decay: Of the optimizer.
        schedule: ``onecycle``, ``cosine`` or ``constant``.
        warmup: Epochs over which the learning rate rises to its largest, before ``cosine`` or ``constant``.
        precision: ``float32``, or autocast to ``bf16`` or ``fp16`` (with a scaled loss).
        accumulate: Batches whose gradients make one step.
        label_smoothing: Share of each label that is spread over all classes, from 0 to below 1.
        patience: Epochs without a better accuracy after which training ends; None for all epochs.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    rho: float | None = None
    adaptive: bool = False
    base: str = "adamw"
    weight_decay: float = 0.05
    schedule: str = "onecycle"
    warmup: float = 0.0
    precision: str = "float32"
    accumulate: int = 1
    label_smoothing: float = 0.0
    patience: int | None = None

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer of the parameters that learn."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        base: Optimizer
        if self.base == "sgd":
            base = SGD(parameters, lr=self.lr, momentum=SGD_MOMENTUM, weight_decay=self.weight_decay)
        else:
            base = AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        if self.rho is None:
            return base
        # With one dropout mask for both passes the second one sees the loss that the perturbation was made for.
        return SAM(parameters, base, rho=self.rho, adaptive=self.adaptive, model=model, same_random=True)

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
        """The learning rate at each step."""
        total = self.epochs * steps_per_epoch
        if self.schedule == "onecycle":
            return OneCycleLR(optimizer, self.lr, total_steps=total)
        rising = round(self.warmup * steps_per_epoch)

        def factor(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(total - rising, 1))))

        return LambdaLR(optimizer, factor)


def freeze(model: nn.Module, what: str | int) -> list[str]:
    """Takes parameters out of training.

    Args:
        model: A stock classifier.
        what: ``backbone`` for all but the last linear layer, or the number of modules from the front: those of
            `stages`.

    Returns:
        The names of the modules that do not learn, each without further modules inside that hold parameters of theirs.

    Raises:
        UsageError: Nothing would be left to train.
    """
    head, _ = models.head(model)
    if what == BACKBONE:
        frozen = [
            (name, module) for name, module in model.named_modules() if _holds_own_parameters(module) and name != head
        ]
    else:
        stages = list(_stages(model))
        if int(what) >= len(stages):
            raise UsageError(
                f"--freeze {what} leaves nothing to train: there are {len(stages)} modules, "
                f"{', '.join(name for name, _ in stages[:4])}, ..."
            )
        frozen = [
            (f"{outer}.{name}" if name else outer, module)
            for outer, stage in stages[: int(what)]
            for name, module in stage.named_modules()
            if _holds_own_parameters(module)
        ]
    for _, module in frozen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
    return [name for name, _ in frozen]


def _holds_own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _stages(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold parameters, in order: children, and of an `nn.Sequential` its children."""
    for name, child in model.named_children():
        parts = [(f"{name}.{inner}", part) for inner, part in child.named_children()]
        for path, part in parts if isinstance(child, nn.Sequential) else [(name, child)]:
            if next(part.parameters(), None) is not None:
                yield path, part
