"""One row of ``bench init``: a network, initialised in one way, trained from one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from momentumnet.cli.bench.cifar_images import ImageData
from momentumnet.cli.bench.cifar_networks import build
from momentumnet.cli.bench.cifar_training import (
    FAILURES,
    MOMENTUM,
    ORDERS,
    WEIGHT_DECAY,
    Course,
    failure,
    parameter_groups,
)
from momentumnet.cli.bench.init_methods import Method, Task
from momentumnet.cli.bench.results import Row
from momentumnet.init import InitReport, kaiming_

EXAMPLES = 8


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
        course: What its epochs came to.
    """

    network: str
    method: Method
    seed: int
    data: ImageData
    recipe: Recipe
    device: torch.device
    course: Course = field(init=False)

    def __post_init__(self) -> None:
        self.course = Course(self.data, self.seed, self.recipe.batch_size, self.device)

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
            accuracies = self.course.accuracies
            found |= {"acc_1": accuracies[first], "acc_best": max(accuracies)}
        except FAILURES as error:
            found["error"] = failure(error)
        seconds = time.perf_counter() - started
        return {**found, "accuracies": self.course.accuracies, "losses": self.course.losses, "seconds": seconds}

    def _initialised(self) -> tuple[nn.Module, InitReport | None]:
        torch.manual_seed(self.seed)
        model = build(self.network, classes=self.data.classes, side=self.data.side).to(self.device)
        kaiming_(model)
        if self.method.initialise is None:
            return model, None
        return model, self.method.initialise(model, task_of(self.network, self.course, self.recipe.init_steps))

    def _train(self, model: nn.Module, advance: Callable[[], object]) -> None:
        lr, steps = self.recipe.lr, self.course.steps_per_epoch
        optimizer = SGD(parameter_groups(model, lr), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, self.recipe.epochs * steps)
        if self.method.first is not None:
            scheduler = self.method.first(optimizer, steps, scheduler)
        self.course.run(model, optimizer, scheduler, self.epochs, advance)


def task_of(network: str, course: Course, steps: int | None) -> Task:
    """What an initialisation looks at before a training takes this course."""
    # Half a batch, as in GradInit's own runs: second derivatives take the memory of the other half.
    batches = _Rounds(course, max(1, course.batch_size // 2))
    examples = course.data.examples(EXAMPLES).to(course.device)
    return Task(network, batches, examples, F.cross_entropy, steps)


@dataclass
class _Rounds:
    """The training images of an initialisation, each time that they are gone through in another order."""

    course: Course
    size: int
    done: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.done += 1
        return self.course.batches(self.size, ORDERS // 2 + self.done)
