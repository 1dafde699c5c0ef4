"""One row of ``bench init``: a network, initialised in one way, trained from one seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from momentumnet.bench.init.methods import Method
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings import recipe as shared
from momentumnet.bench.trainings.initialisations import task_of
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options
from momentumnet.bench.trainings.training import FAILURES, SeededTraining, failure
from momentumnet.init import InitReport, kaiming_


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are initialised and trained.

    Attributes:
        init_steps: Steps of initialisations that learn; None for those of their papers.
    """

    init_steps: int | None


@dataclass
class Training(SeededTraining):
    """A training from a seed.

    Attributes:
        recipe: How it goes on.
        method: How it begins.
    """

    recipe: Recipe
    method: Method

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
        model = self.new_model()
        kaiming_(model)
        if self.method.initialise is None:
            return model, None
        return model, self.method.initialise(model, task_of(self.network, self.course, self.recipe.init_steps))

    def _train(self, model: nn.Module, advance: Callable[[], object]) -> None:
        lr, steps = self.recipe.lr, self.course.steps_per_epoch
        optimizer = SGD(parameter_groups(model, lr), **sgd_options(lr))
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, self.recipe.epochs * steps)
        if self.method.first is not None:
            scheduler = self.method.first(optimizer, steps, scheduler)
        self.course.run(model, optimizer, scheduler, self.epochs, advance)
