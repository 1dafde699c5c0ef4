"""One row of ``bench sharpness``: a training from a seed, in the course of which the landscape is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet import convert
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.sharpness.measure import measure
from momentumnet.bench.sharpness.methods import Method, Recipe
from momentumnet.bench.trainings.initialisations import EXAMPLES
from momentumnet.bench.trainings.optimizer_training import OptimizerTraining

# The streams are short, and backward="auto" would keep the inputs of their blocks; the values are the same.
CONVERSION: dict[str, Any] = {"final_velocity": "flush", "backward": "reversible"}


@dataclass
class Trajectory(OptimizerTraining):
    """A training from a seed, looked at several times.

    Attributes:
        recipe: How it is trained.
        method: What trains it.
        looks: How many times it is looked at, the last time at its end.
        measurements: What was seen.
    """

    recipe: Recipe
    method: Method
    looks: int
    measurements: list[Row] = field(default_factory=list, init=False)

    @property
    def measured_epochs(self) -> set[int]:
        """The epochs after which the landscape is looked at: equal parts of the training, to the nearest epoch.

        Never before the first one, when batch normalisation has no statistics to be used in eval mode.
        """
        return {max(1, round(self.epochs * part / self.looks)) for part in range(1, self.looks + 1)}

    def row(self, advance: Callable[[], object] = lambda: None) -> Row:
        """Runs it; ``advance`` is called after each epoch.

        Returns:
            What every training returns, and ``measurements``: epoch, passes until then, and what `measure` found.
        """
        return {**super().row(advance), "measurements": self.measurements}

    def _initialised(self) -> nn.Module:
        model = super()._initialised()
        if self.method.converted:
            examples = self.data.examples(EXAMPLES).to(self.device)
            convert(model, examples, gamma=Fraction(self.recipe.gamma), **CONVERSION, inplace=True)
        return model

    def _look(self, model: nn.Module) -> None:
        epoch = len(self.course.accuracies)
        if epoch in self.measured_epochs:
            found = measure(model, self.probes(self.recipe.probes), self.recipe.ascents)
            self.measurements.append({"epoch": epoch, "passes": epoch * self.method.passes, **found})
