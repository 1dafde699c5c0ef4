"""Training from a seed, on small images or on other data: the loop that the benchmarks of trainings share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from momentumnet.bench.cifar_networks import build
from momentumnet.bench.images import ImageData
from momentumnet.bench.recipe import CLIP, Recipe, is_normalised
from momentumnet.errors import MomentumNetError

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
    """What a course goes through, e.g. images with their classes."""

    @property
    def x_train(self) -> Tensor:
        """The training data, a sample an entry."""

    def train_batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of full batches with their targets; all that goes by chance depends on ``seed`` alone."""

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The data that is not trained on, in order."""


Data = TypeVar("Data", bound=TrainingData)


@dataclass
class Course(Generic[Data]):
    """The course of a training on a device: images in the orders of a seed, and what the epochs came to.

    A course over other data than images has its own `loss` and `score`.

    Attributes:
        data: Images and classes.
        seed: Decides order and augmentation of the images.
        batch_size: Images per step.
        device: Where the model is.
        scores: On the test data after each epoch: accuracies (%).
        losses: Mean loss of each epoch.
        step_seconds: Duration of each optimizer step, its passes included.
    """

    data: Data
    seed: int
    batch_size: int
    device: torch.device
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        return len(self.data.x_train) // self.batch_size

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch."""
        return F.cross_entropy(model(x), y)

    def score(self, model: nn.Module) -> float:
        """What the model comes to on the test data."""
        return accuracy(model, self.data, self.device)

    def batches(self, size: int, order: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images once, on the device, in one of the seed's orders."""
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
                losses.append(float(optimizer.step(self._closure(model, optimizer, x, y, clip, where))))
                self.step_seconds.append(time.perf_counter() - began)
                scheduler.step()
                on_step()
            self.losses.append(sum(losses) / len(losses))
            self.scores.append(self.score(model))
            advance()

    def _closure(
        self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, clip: float, where: str
    ) -> Callable[[], float]:
        def closure() -> float:
            optimizer.zero_grad()
            loss = self.loss(model, x, y)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergedError(f"diverged: loss {value} in {where}")
            loss.backward()
            if clip < math.inf:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return value

        return closure


@torch.no_grad()
def accuracy(model: nn.Module, data: TrainingData, device: torch.device) -> float:
    """Of the test images (%), in eval mode."""
    model.eval()
    right = torch.cat([model(x.to(device)).argmax(1).cpu() == y for x, y in data.test_batches(TEST_BATCH)])
    return 100 * int(right.sum()) / len(right)


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
    course: Course[ImageData] = field(init=False)

    def __post_init__(self) -> None:
        self.course = self.new_course()

    def new_course(self) -> Course[ImageData]:
        """A course that has not begun."""
        return Course(self.data, self.seed, self.recipe.batch_size, self.device)

    def new_model(self) -> nn.Module:
        """The network, with the seed's weights of PyTorch."""
        torch.manual_seed(self.seed)
        return build(self.network, classes=self.data.classes, side=self.data.side).to(self.device)
