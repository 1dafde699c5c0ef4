"""One row of ``bench sam``: a network trained by one optimizer, on labels some of which are wrong, from one seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from momentumnet import landscape
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.trainings.optimizer_training import RADIUS, OptimizerTraining

PROBES = 256  # training images on which the landscape is looked at


@dataclass
class Training(OptimizerTraining):
    """A training from a seed, with a look at the landscape at its end."""

    def _landscape(self, model: nn.Module) -> Row:
        """Sharpness and largest eigenvalue of the loss that was trained."""
        model.eval()  # else the loss would be one of the batch's statistics too
        batch = self.probes(PROBES)
        eigenvalue = landscape.hessian_top_eigenvalues(model, F.cross_entropy, batch, 1)
        return {
            "sharpness": landscape.sharpness(model, F.cross_entropy, batch, RADIUS),
            "eigenvalue": float(eigenvalue[0]),
        }
