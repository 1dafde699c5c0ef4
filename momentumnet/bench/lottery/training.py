"""One row of ``bench lottery``: a network from one initialisation and one seed, pruned round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from momentumnet.bench.networks.cifar_networks import LENET
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings import recipe as shared
from momentumnet.bench.trainings.initialisations import EXAMPLES, fixup, gradinit, task_of
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options, warm_cosine, warm_then_constant
from momentumnet.bench.trainings.training import FAILURES, SeededTraining, failure
from momentumnet.init import kaiming_, xavier_
from momentumnet.prune import TICKET, LotteryTicket, TrainingLog, masks_of
from momentumnet.prune.lottery.arms import RANDOM_MASK, REINITIALISED

ADAM_RATE = 1.2e-3  # LeNet's (Frankle, Carbin, figure 2)
XAVIER = {"xavier": "uniform", "xavier_normal": "normal"}
INITIALISATIONS = ("xavier", "xavier_normal", "kaiming", "fixup", "gradinit")


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained and pruned; ``epochs`` are those of a training from its first step to its last.

    Attributes:
        warmup_epochs: Epochs in which the learning rate rises to ``lr``.
        fraction: What a round takes of what is left.
        rounds: Number of prunings.
        rewind_epochs: Epochs after which the weights are those that tickets begin with.
        dense_epochs: Epochs after which the dense training is stopped and the first mask is drawn; its learning rate
            is that of a training which is not stopped.
        structure: "weight", "channel" or "block".
        scope: "global" or "layer".
        controls: Of `momentumnet.prune.CONTROLS`, those that are trained beside the tickets.
        init_steps: Steps of gradinit; None for its paper's.
    """

    warmup_epochs: int
    fraction: float
    rounds: int
    rewind_epochs: int
    dense_epochs: int
    structure: str
    scope: str
    controls: tuple[str, ...]
    init_steps: int | None


@dataclass
class Lottery(SeededTraining):
    """A lottery from a seed, which decides what the controls draw too.

    Attributes:
        recipe: How it goes on.
        initialisation: One of `INITIALISATIONS`: of the network, and of the control that is drawn anew.
        folder: Where finished trainings are kept until the row is done.
    """

    recipe: Recipe
    initialisation: str
    folder: Path

    @property
    def epochs(self) -> int:
        """Epochs of all trainings."""
        left = self.recipe.epochs - self.recipe.rewind_epochs
        arms = {TICKET: left, RANDOM_MASK: left, REINITIALISED: self.recipe.epochs}  # new weights are not rewound
        trained = sum(arms[arm] for arm in (TICKET, *self.recipe.controls))
        return self.recipe.dense_epochs + self.recipe.rounds * trained

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
        model = self.new_model()
        self._initialise(model)
        structured = self.recipe.structure != "weight"
        return LotteryTicket(
            model,
            lambda model, log: self._train(model, log, advance),
            fraction=self.recipe.fraction,
            rounds=self.recipe.rounds,
            rewind_to=self.recipe.rewind_epochs * self.course.steps_per_epoch,
            scope=self.recipe.scope,
            structure=self.recipe.structure,
            example_inputs=self.data.examples(EXAMPLES).to(self.device) if structured else None,
            controls=self.recipe.controls,
            reinitialise=self._initialise,
            early_bird=0.0,  # only watches
            seed=self.seed,
            folder=self.folder,
        )

    def _initialise(self, model: nn.Module) -> None:
        if self.initialisation in XAVIER:
            xavier_(model, distribution=XAVIER[self.initialisation])
            return
        kaiming_(model)
        learned = {"gradinit": gradinit, "fixup": fixup}.get(self.initialisation)
        if learned is not None:
            learned(model, task_of(self.network, self.new_course(), self.recipe.init_steps))

    def _train(self, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        course = self.new_course()
        optimizer = _optimizer(self.network, model, self.recipe.lr)
        scheduler = self._schedule(optimizer, course.steps_per_epoch, log.start_step)
        dense = not masks_of(model)

        def evaluated() -> None:
            log.accuracy(course.accuracies[-1])
            advance()

        course.run(
            model,
            optimizer,
            scheduler,
            self.recipe.dense_epochs if dense else self.recipe.epochs,
            evaluated,
            start_step=log.start_step,
            on_step=log.step,
        )

    def _schedule(self, optimizer: Optimizer, steps_per_epoch: int, start_step: int) -> LRScheduler:
        """The schedule of a whole training, which begins at ``start_step``."""
        schedule = warm_then_constant if self.network == LENET else warm_cosine
        return schedule(
            optimizer,
            self.recipe.epochs * steps_per_epoch,
            warm_steps=self.recipe.warmup_epochs * steps_per_epoch,
            start_step=start_step,
        )


def _optimizer(network: str, model: nn.Module, lr: float) -> Optimizer:
    if network == LENET:
        return Adam(model.parameters(), lr=lr)
    return SGD(parameter_groups(model, lr), **sgd_options(lr))
