"""Nested rings in the plane that a flow is to separate: two of them, and the paper's four in two classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from momentumnet.bench.paper.blocks import TanhBlock, flow
from momentumnet.bench.paper.flows import DRAWN, MOMENTUM, RESNET, FlowExperiment
from momentumnet.bench.reporting.results import Row
from momentumnet.predictions import predicted

INNER, SPACING, WIDTH = 1.5, 1.5, 0.6  # radius of the first ring, from one ring to the next, and of the band itself
TEST_POINTS = 500  # in each ring


class Rings(FlowExperiment):
    """Tells the rings' classes apart by where the flow takes them: the two coordinates are the classes' scores.

    A flow of a first-order ODE in the plane is a homeomorphism and cannot take an inner ring out of an outer one. The
    rings' radii are those of the authors' example: ring k lies between 1.5 k and 1.5 k + 0.6, and the classes take
    turns.
    """

    name = "rings"
    dimension = 2
    count: ClassVar[int] = 2
    rates: ClassVar[Mapping[str, float]] = {RESNET: 0.01, MOMENTUM: 0.05}

    def task(self) -> dict[str, Any]:
        """What is learned."""
        return {
            "rings": self.count,
            "classes": 2,
            "radii": [[INNER + SPACING * ring, INNER + SPACING * ring + WIDTH] for ring in range(self.count)],
            "points drawn": "uniform in angle and in radius, new ones in each step, as many in each ring",
            "loss": "cross-entropy of the two coordinates after the last layer",
            "test points": TEST_POINTS * self.count,
        }

    def sample(self, generator: torch.Generator, points: int) -> tuple[Tensor, Tensor]:
        """Points and their classes."""
        ring = torch.arange(self.count).repeat_interleave(points)
        angle = 2 * math.pi * torch.rand(len(ring), generator=generator)
        radius = INNER + SPACING * ring + WIDTH * torch.rand(len(ring), generator=generator)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), ring % 2

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy of each seed."""
        return F.cross_entropy(outputs.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted).mean(1)

    def measures(self, block: TanhBlock, gamma: float, seeds: Sequence[int]) -> list[Row]:
        """Accuracy on points that were not trained on (%)."""
        x, wanted = self._samples([torch.Generator().manual_seed(2 * DRAWN + seed) for seed in seeds], TEST_POINTS)
        frames = flow(block, x, self.depth, gamma)
        accuracies = 100 * (predicted(frames[-1], 2) == wanted).float().mean(1)
        steep = self.steepness(block, frames)
        return [
            {"accuracy": float(accuracy), "steepness": slope} for accuracy, slope in zip(accuracies, steep, strict=True)
        ]


class PointClouds(Rings):
    """The paper's point clouds: four nested rings in two classes."""

    name = "point-clouds"
    count = 4
    rates: ClassVar[Mapping[str, float]] = {RESNET: 0.01, MOMENTUM: 0.5}
