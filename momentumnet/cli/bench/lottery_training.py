"""One row of ``bench lottery``: a network from one initialisation and one seed, pruned round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from momentumnet.cli.bench.cifar_images import ImageData
from momentumnet.cli.bench.cifar_networks import LENET, build
from momentumnet.cli.bench.cifar_training import FAILURES, MOMENTUM, WEIGHT_DECAY, Course, failure, parameter_groups
from momentumnet.cli.bench.init_methods import METHODS
from momentumnet.cli.bench.init_training import EXAMPLES, task_of
from momentumnet.cli.bench.results import Row
from momentumnet.init import kaiming_, xavier_
from momentumnet.prune import CONTROLS, LotteryTicket, TrainingLog

ADAM_RATE = 1.2e-3  # LeNet's (Frankle, Carbin, figure 2)
INITIALISATIONS = ("xavier", "kaiming", "gradinit")


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained and pruned.

    Attributes:
        epochs: Epochs of the dense training.
        batch_size: Images per step.
        lr: Learning rate of SGD at the schedule's beginning.
        fraction: What a round takes of what is left.
        rounds: Number of prunings.
        rewind_epochs: Epochs after which the weights are those that tickets begin with.
        structure: "weight", "channel" or "block".
        scope: "global" or "layer".
        init_steps: Steps of gradinit; None for its paper's.
    """

    epochs: int
    batch_size: int
    lr: float
    fraction: float
    rounds: int
    rewind_epochs: int
    structure: str
    scope: str
    init_steps: int | None


@dataclass
class Lottery:
    """A lottery from a seed, which decides weights, order of the images, augmentation, and what the controls draw.

    Attributes:
        network: Name of the network.
        initialisation: One of `INITIALISATIONS`: of the network, and of the control that is drawn anew.
        seed: The seed.
        data: Images and classes.
        recipe: How it goes on.
        device: Where.
        folder: Where finished trainings are kept until the row is done.
    """

    network: str
    initialisation: str
    seed: int
    data: ImageData
    recipe: Recipe
    device: torch.device
    folder: Path

    @property
    def epochs(self) -> int:
        """Epochs of all trainings."""
        left = self.recipe.epochs - self.recipe.rewind_epochs
        # Each round trains the ticket and the random mask from where they are rewound to, and new weights in full.
        return self.recipe.epochs + self.recipe.rounds * (2 * left + self.recipe.epochs)

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each epoch.

        Returns:
            The values of all trainings, seconds, and ``error`` where it came to an end before its time.
        """
        started = time.perf_counter()
        found: Row = {"trainings": []}
        try:
            found["trainings"] = self._lottery(advance).run().values()
        except FAILURES as error:
            found["error"] = failure(error)
        return {**found, "seconds": time.perf_counter() - started}

    def _lottery(self, advance: Callable[[], object]) -> LotteryTicket:
        torch.manual_seed(self.seed)
        model = build(self.network, classes=self.data.classes, side=self.data.side).to(self.device)
        self._initialise(model)
        structured = self.recipe.structure != "weight"
        return LotteryTicket(
            model,
            lambda model, log: self._train(model, log, advance),
            fraction=self.recipe.fraction,
            rounds=self.recipe.rounds,
            rewind_to=self.recipe.rewind_epochs * self._course().steps_per_epoch,
            scope=self.recipe.scope,
            structure=self.recipe.structure,
            example_inputs=self.data.examples(EXAMPLES).to(self.device) if structured else None,
            controls=CONTROLS,
            reinitialise=self._initialise,
            early_bird=0.0,  # only watches
            seed=self.seed,
            folder=self.folder,
        )

    def _initialise(self, model: nn.Module) -> None:
        if self.initialisation == "xavier":
            xavier_(model)
            return
        kaiming_(model)
        learned = METHODS[self.initialisation].initialise
        if learned is not None:
            learned(model, task_of(self.network, self._course(), self.recipe.init_steps))

    def _course(self) -> Course:
        return Course(self.data, self.seed, self.recipe.batch_size, self.device)

    def _train(self, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        course = self._course()
        optimizer, scheduler = _optimizer(
            self.network, model, self.recipe.lr, self.recipe.epochs * course.steps_per_epoch, log.start_step
        )

        def evaluated() -> None:
            log.accuracy(course.accuracies[-1])
            advance()

        course.run(
            model,
            optimizer,
            scheduler,
            self.recipe.epochs,
            evaluated,
            start_step=log.start_step,
            on_step=log.step,
        )


def _optimizer(network: str, model: nn.Module, lr: float, steps: int, start: int) -> tuple[Optimizer, LRScheduler]:
    """The optimizer, and its schedule of ``steps`` steps from ``start`` on."""
    if network == LENET:
        adam = Adam(model.parameters(), lr=ADAM_RATE)
        return adam, LambdaLR(adam, lambda step: 1.0)
    sgd = SGD(parameter_groups(model, lr), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for group in sgd.param_groups:
        group["initial_lr"] = group["lr"]
    return sgd, CosineAnnealingLR(sgd, steps, last_epoch=start - 1)
