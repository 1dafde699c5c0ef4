"""The loop that the benchmarks of trainings share; and CIFAR's networks on small images, trained from a seed by it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from momentumnet.bench.data.images import ImageData
from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.trainings.recipe import CLIP, Recipe, is_normalised
from momentumnet.errors import MomentumNetError
from momentumnet.predictions import predicted

TEST_BATCH = 250
# Orders of the images: a seed has as many epochs, and from the middle on rounds of its initialisation.
ORDERS = 1_000_000
# What an initialisation or a training can end with on its own account: shown in the row, and the next row begins.
FAILURES = (MomentumNetError, ValueError, RuntimeError, ArithmeticError)


class DivergedError(ArithmeticError):
    """The loss of a training is no number any more."""


def failure(error: BaseException) -> str:
    """What a row says of the error that ended it: one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


class TrainingData(Protocol):
    """Examples in memory."""

    @property
    def x_train(self) -> Tensor:
        """Those to train on, one a place of the first dimension."""

    def train_batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of full batches, inputs and targets, in the order of ``seed``."""


Data = TypeVar("Data", bound=TrainingData)


@dataclass
class TrainingCourse(ABC, Generic[Data]):
    """The course of a training on a device: examples in the orders of a seed, and what the epochs came to.

    Attributes:
        data: What is learnt.
        seed: Decides order and augmentation of the examples.
        batch_size: Examples per step.
        device: Where the model is.
        losses: Mean loss of each epoch.
        step_seconds: Duration of each optimizer step, its passes included.
    """

    data: Data
    seed: int
    batch_size: int
    device: torch.device
    losses: list[float] = field(default_factory=list, kw_only=True)
    step_seconds: list[float] = field(default_factory=list, kw_only=True)

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> None:
        """Notes how good the model is on data that it was not trained on."""

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training examples."""
        return len(self.data.x_train) // self.batch_size

    def batches(self, size: int, order: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training examples once, on the device, in one of the seed's orders."""
        for x, y in self.data.train_batches(size, ORDERS * self.seed + order):
            yield x.to(self.device), y.to(self.device)

    def run(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        epochs: int,
        advance: Callable[[], object],
        *,
        start_step: int = 0,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains; without normalisation the gradient of each pass is clipped.

        Args:
            model: The network.
            optimizer: Its optimizer.
            scheduler: Stepped after each step; where the course begins later it must begin there.
            epochs: Number of epochs, those before ``start_step`` included.
            advance: Called after each epoch.
            start_step: Step at which the course begins: the batches before it are passed over.
            on_step: Called after each step.

        Raises:
            DivergedError: A loss is not finite.
        """
        clip = math.inf if is_normalised(model) else CLIP
        first_epoch, passed_over = divmod(start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, epochs):
            model.train()
            losses: list[float] = []
            skipped = passed_over if epoch == first_epoch else 0
            for x, y in islice(self.batches(self.batch_size, epoch), skipped, None):
                where = f"step {skipped + len(losses) + 1} of epoch {epoch + 1}"
                # A loss is read back in each pass, so the queue of a GPU is one step long and the clock sees it.
                began = time.perf_counter()
                loss = partial(self.loss, model, x=x, y=y)
                losses.append(float(optimizer.step(closure(model, optimizer, loss, clip=clip, where=where))))
                self.step_seconds.append(time.perf_counter() - began)
                scheduler.step()
                on_step()
            self.losses.append(sum(losses) / len(losses))
            self.evaluate(model)
            advance()


@dataclass
class Course(TrainingCourse[ImageData]):
    """The course of a training on images.

    Attributes:
        accuracies: On the test images (%), after each epoch.
    """

    accuracies: list[float] = field(default_factory=list, kw_only=True)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of the classes."""
        return F.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module) -> None:
        """Notes the accuracy."""
        self.accuracies.append(accuracy(model, self.data, self.device))


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData, device: torch.device) -> float:
    """Of the test images (%), in eval mode."""
    model.eval()
    right = sum(int((predicted(model(x.to(device))).cpu() == y).sum()) for x, y in data.test_batches(TEST_BATCH))
    return 100 * right / len(data.y_test)


@dataclass
class SeededTraining:
    """What a training from a seed begins with.

    Attributes:
        network: Name of the network.
        seed: Decides weights, order of the images and augmentation.
        data: Images and classes.
        recipe: How it is trained.
        device: Where.
        course: What its epochs came to.
    """

    network: str
    seed: int
    data: ImageData
    recipe: Recipe
    device: torch.device
    course: Course = field(init=False)

    def __post_init__(self) -> None:
        self.course = self.new_course()

    def new_course(self) -> Course:
        """A course that has not begun."""
        return Course(self.data, self.seed, self.recipe.batch_size, self.device)

    def new_model(self) -> nn.Module:
        """The network, with the seed's weights of PyTorch."""
        torch.manual_seed(self.seed)
        return build(self.network, classes=self.data.classes, side=self.data.side).to(self.device)


def closure(
    model: nn.Module, optimizer: Optimizer, loss: Callable[[], Tensor], *, clip: float, where: str
) -> Callable[[], float]:
    """What ``optimizer.step`` calls for a forward and backward pass.

    Args:
        model: Whose gradient is clipped.
        optimizer: Its optimizer.
        loss: Makes the loss.
        clip: Norm of the gradient at most; infinity for none.
        where: Names the step in the error.

    Returns:
        A function that returns the loss, and raises `DivergedError` where it is not finite.
    """

    def run() -> float:
        optimizer.zero_grad()
        found = loss()
        value = float(found.detach())
        if not math.isfinite(value):
            raise DivergedError(f"diverged: loss {value} in {where}")
        found.backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return value

    return run
