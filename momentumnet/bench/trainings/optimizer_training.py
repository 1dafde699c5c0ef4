"""A network trained by one optimizer, on labels some of which are wrong, from one seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet.bench.data.label_noise import with_wrong_labels
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.optimizers import Method, Recipe
from momentumnet.bench.trainings.training import FAILURES, Course, SeededTraining, failure
from momentumnet.init import kaiming_

RADIUS = 0.05  # of the sharpness; the same for all methods, whatever radius they train with


@dataclass
class OptimizerTraining(SeededTraining):
    """A training from a seed, which decides the wrong labels too.

    Attributes:
        data: Images and classes, all of them right.
        recipe: How it is trained.
        noise: Share of wrong training labels (%).
        method: What trains it.
    """

    recipe: Recipe
    noise: float
    method: Method

    def new_course(self) -> Course:
        """A course over the images with the wrong labels."""
        labelled = with_wrong_labels(self.data, self.noise, self.seed)
        return Course(labelled, self.seed, self.recipe.batch_size, self.device)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.recipe.epochs * self.method.longer

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each epoch.

        Returns:
            Accuracies and losses, what the landscape is like at the end, median seconds of a step and seconds of all,
            and ``error`` where it came to an end before its time.
        """
        started = time.perf_counter()
        found: Row = {"acc_final": None, "acc_best": None, "epochs": self.epochs}
        found["passes"] = self.epochs * self.method.passes
        try:
            model = self._trained(advance)
            accuracies = self.course.accuracies
            found |= {"acc_final": accuracies[-1], "acc_best": max(accuracies)}
            found["step_seconds"] = statistics.median(self.course.step_seconds)
            found |= self._landscape(model)
        except FAILURES as error:
            found["error"] = failure(error)
        seconds = time.perf_counter() - started
        return {**found, "accuracies": self.course.accuracies, "losses": self.course.losses, "seconds": seconds}

    def probes(self, count: int) -> tuple[Tensor, Tensor]:
        """The first training images, not augmented, and their labels as they are trained on, wrong ones among them."""
        data = self.course.data
        return data.examples(count).to(self.device), data.y_train[:count].to(self.device)

    def _initialised(self) -> nn.Module:
        model = self.new_model()
        kaiming_(model)
        return model

    def _trained(self, advance: Callable[[], object]) -> nn.Module:
        model = self._initialised()
        optimizer = self.method.make(model, self.recipe)
        scheduler = CosineAnnealingLR(optimizer, self.epochs * self.course.steps_per_epoch)

        def after_epoch() -> None:
            self._look(model)
            advance()

        self.course.run(model, optimizer, scheduler, self.epochs, after_epoch)
        return model

    def _look(self, model: nn.Module) -> None:
        """After each epoch; here nothing is looked at."""

    def _landscape(self, model: nn.Module) -> Row:
        """What is looked at in the end."""
        return {}
