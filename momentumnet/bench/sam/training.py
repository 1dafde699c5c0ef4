"""One row of ``bench sam``: a network trained by one optimizer, on labels some of which are wrong, from one seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet import landscape
from momentumnet.bench.results import Row
from momentumnet.bench.sam.label_noise import with_wrong_labels
from momentumnet.bench.sam.methods import Method, Recipe
from momentumnet.bench.training import FAILURES, Course, SeededTraining, failure
from momentumnet.init import kaiming_

PROBES = 256  # training images on which the landscape is looked at
RADIUS = 0.05  # of the sharpness; the same for all methods, whatever radius they train with


@dataclass
class Training(SeededTraining):
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
            Accuracies and losses, sharpness and largest eigenvalue of the Hessian at the end, median seconds of a step
            and seconds of all, and ``error`` where it came to an end before its time.
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

    def _trained(self, advance: Callable[[], object]) -> nn.Module:
        model = self.new_model()
        kaiming_(model)
        optimizer = self.method.make(model, self.recipe)
        scheduler = CosineAnnealingLR(optimizer, self.epochs * self.course.steps_per_epoch)
        self.course.run(model, optimizer, scheduler, self.epochs, advance)
        return model

    def _landscape(self, model: nn.Module) -> Row:
        """Of the loss that was trained: on training images as they are, and their labels, wrong ones among them."""
        model.eval()  # else the loss would be one of the batch's statistics too
        x = self.course.data.examples(PROBES).to(self.device)
        batch = (x, self.course.data.y_train[:PROBES].to(self.device))
        eigenvalue = landscape.hessian_top_eigenvalues(model, F.cross_entropy, batch, 1)
        return {
            "sharpness": landscape.sharpness(model, F.cross_entropy, batch, RADIUS),
            "eigenvalue": float(eigenvalue[0]),
        }
