"""One row of ``bench init``: a network, initialised in one way, trained from one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from momentumnet.cli.bench.cifar_images import ImageData
from momentumnet.cli.bench.cifar_networks import build
from momentumnet.cli.bench.init_methods import Method, Task
from momentumnet.cli.bench.results import Row
from momentumnet.errors import MomentumNetError
from momentumnet.init import InitReport, kaiming_

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CLIP = 1.0  # norm of the gradient in networks without normalisation
TEST_BATCH, EXAMPLES = 250, 8
# Orders of the images: a seed has as many epochs, and from the middle on rounds of its initialisation.
ORDERS = 1_000_000
# What an initialisation or a training can end with on its own account: shown in the row, and the next row begins.
FAILURES = (MomentumNetError, ValueError, RuntimeError, ArithmeticError)


class DivergedError(ArithmeticError):
    """The loss of a training is no number any more."""


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained.

    Attributes:
        epochs: Epochs of the cosine schedule.
        batch_size: Images per step.
        lr: Learning rate at the schedule's beginning.
        init_steps: Steps of initialisations that learn; None for those of their papers.
    """

    epochs: int
    batch_size: int
    lr: float
    init_steps: int | None


@dataclass
class Training:
    """A training from a seed, which decides weights, order of the images and augmentation.

    Attributes:
        network: Name of the network.
        method: How it begins.
        seed: The seed.
        data: Images and classes.
        recipe: How it goes on.
        device: Where.
        accuracies: On the test images (%), after each epoch.
        losses: Mean loss of each epoch.
    """

    network: str
    method: Method
    seed: int
    data: ImageData
    recipe: Recipe
    device: torch.device
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.recipe.epochs + (self.method.first is not None)

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each epoch.

        Acc_1 is taken after the first epoch of the schedule. In the baselines with one more epoch that is their second
        one: the first stands for the initialisation that they do without.

        Returns:
            Accuracies and losses, what the initialisation's objective was at first and at last, seconds, and ``error``
            where it came to an end before its time.
        """
        started = time.perf_counter()
        found: Row = {"acc_1": None, "acc_best": None}
        try:
            model, report = self._initialised()
            if report is not None and report.losses:
                found["init_objective"] = [report.losses[0], report.losses[-1]]
            found["init_seconds"] = time.perf_counter() - started
            self._train(model, advance)
            first = 0 if self.method.first is None else 1
            found |= {"acc_1": self.accuracies[first], "acc_best": max(self.accuracies)}
        except FAILURES as error:
            found["error"] = (str(error) or type(error).__name__).splitlines()[0]
        seconds = time.perf_counter() - started
        return {**found, "accuracies": self.accuracies, "losses": self.losses, "seconds": seconds}

    def _initialised(self) -> tuple[nn.Module, InitReport | None]:
        torch.manual_seed(self.seed)
        model = build(self.network, classes=int(self.data.y_train.max()) + 1).to(self.device)
        kaiming_(model)
        if self.method.initialise is None:
            return model, None
        # Half a batch, as in GradInit's own runs: second derivatives take the memory of the other half.
        batches = _Rounds(self, max(1, self.recipe.batch_size // 2))
        examples = self.data.examples(EXAMPLES).to(self.device)
        task = Task(self.network, batches, examples, F.cross_entropy, self.recipe.init_steps)
        return model, self.method.initialise(model, task)

    def batches(self, size: int, order: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images once, on the device, in one of the seed's orders."""
        for x, y in self.data.train_batches(size, ORDERS * self.seed + order):
            yield x.to(self.device), y.to(self.device)

    def _train(self, model: nn.Module, advance: Callable[[], object]) -> None:
        steps = len(self.data.x_train) // self.recipe.batch_size
        # Asked of the model: an initialisation may have taken the normalisation out.
        normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        optimizer = _optimizer(model, self.recipe.lr, normalised=normalised)
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, self.recipe.epochs * steps)
        if self.method.first is not None:
            scheduler = self.method.first(optimizer, steps, scheduler)
        for epoch in range(self.epochs):
            losses = []
            model.train()
            for x, y in self.batches(self.recipe.batch_size, epoch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise DivergedError(f"diverged: loss {losses[-1]} in step {len(losses)} of epoch {epoch + 1}")
                loss.backward()
                if not normalised:
                    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                scheduler.step()
            self.losses.append(sum(losses) / len(losses))
            self.accuracies.append(self._accuracy(model))
            advance()

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        model.eval()
        right = sum(
            int((model(x.to(self.device)).argmax(1).cpu() == y).sum()) for x, y in self.data.test_batches(TEST_BATCH)
        )
        return 100 * right / len(self.data.y_test)


@dataclass
class _Rounds:
    """The training images of an initialisation, each time that they are gone through in another order."""

    training: Training
    size: int
    done: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.done += 1
        return self.training.batches(self.size, ORDERS // 2 + self.done)


def _optimizer(model: nn.Module, lr: float, *, normalised: bool) -> Optimizer:
    """SGD as in GradInit's own runs: vectors are not decayed beside normalisation, and learn at lr / 10 without it."""
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    special = {"weight_decay": 0.0} if normalised else {"lr": lr / 10}
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, **special}]
    return SGD(groups, lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
