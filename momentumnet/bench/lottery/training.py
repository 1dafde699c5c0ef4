"""One row of ``bench lottery``: a network from one initialisation and one seed, pruned round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from momentumnet.bench import recipe as shared
from momentumnet.bench.cifar_networks import LENET
from momentumnet.bench.initialisations import EXAMPLES, gradinit, task_of
from momentumnet.bench.recipe import parameter_groups, sgd_options
from momentumnet.bench.results import Row
from momentumnet.bench.training import FAILURES, SeededTraining, failure
from momentumnet.init import kaiming_, xavier_
from momentumnet.prune import CONTROLS, LotteryTicket, TrainingLog

ADAM_RATE = 1.2e-3  # LeNet's (Frankle, Carbin, figure 2)
INITIALISATIONS = ("xavier", "kaiming", "gradinit")


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained and pruned; ``epochs`` are those of the dense training.

    Attributes:
        fraction: What a round takes of what is left.
        rounds: Number of prunings.
        rewind_epochs: Epochs after which the weights are those that tickets begin with.
        structure: "weight", "channel" or "block".
        scope: "global" or "layer".
        init_steps: Steps of gradinit; None for its paper's.
    """

    fraction: float
    rounds: int
    rewind_epochs: int
    structure: str
    scope: str
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
        if self.initialisation == "gradinit":
            gradinit(model, task_of(self.network, self.new_course(), self.recipe.init_steps))

    def _train(self, model: nn.Module, log: TrainingLog, advance: Callable[[], object]) -> None:
        course = self.new_course()
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
    sgd = SGD(parameter_groups(model, lr), **sgd_options(lr))
    for group in sgd.param_groups:
        group["initial_lr"] = group["lr"]
    return sgd, CosineAnnealingLR(sgd, steps, last_epoch=start - 1)
