"""Trajectories in one dimension that have to cross: ``x -> -x**3``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from momentumnet.bench.paper.blocks import TanhBlock, flow
from momentumnet.bench.paper.flows import LONG_STEPS, MOMENTUM, RESNET, FlowExperiment
from momentumnet.bench.reporting.results import Row

GRID = 101  # places at which the learned map is looked at, an odd number
APART = 1e-4  # by which two points must be apart to have changed places: more than the rounding of points that meet


class Crossing(FlowExperiment):
    """Learns ``h(x) = -x**3`` on [-1, 1], which turns the order of all points around.

    A first-order ODE on the line keeps their order, because its trajectories cannot cross. The best map that keeps the
    order is then the constant 0, with error ``mean h**2``, that is 1/7. A second-order ODE has a velocity beside the
    place, and its trajectories may cross: figure 1 of the paper (Sander, Ablin, Blondel, Peyre, ICML 2021). Layers are
    steps of an ODE only while they are short; a ResNet that is trained at a larger rate jumps over its neighbours.
    """

    name = "crossing"
    dimension = 1
    rates: ClassVar[Mapping[str, float]] = {RESNET: 0.01, LONG_STEPS: 0.03, MOMENTUM: 0.1}

    def task(self) -> dict[str, Any]:
        """What is learned."""
        return {"target": "-x**3", "points drawn": "uniform in [-1, 1]", "loss": "mean squared error"}

    def sample(self, generator: torch.Generator, points: int) -> tuple[Tensor, Tensor]:
        """Points, and where they are to go."""
        x = 2 * torch.rand(points, 1, generator=generator) - 1
        return x, -(x**3)

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error of each seed."""
        return (outputs - wanted).square().mean((1, 2))

    def measures(self, block: TanhBlock, gamma: float, seeds: Sequence[int]) -> list[Row]:
        """Error on a grid, and how many of the pairs x and -x there have changed places (%)."""
        x = grid(GRID).expand(len(seeds), GRID, 1)
        frames = flow(block, x, self.depth, gamma)
        ends = frames[-1]
        errors = self.loss(ends, -(x**3))
        below, above = ends[:, : GRID // 2, 0], ends[:, GRID // 2 + 1 :, 0].flip(1)
        turned = 100 * (below - above > APART).float().mean(1)
        steep = self.steepness(block, frames)
        return [
            {"error_on_grid": float(error), "turned": float(share), "steepness": slope}
            for error, share, slope in zip(errors, turned, steep, strict=True)
        ]


def grid(count: int) -> Tensor:
    """Places from -1 to 1: (1, count, 1)."""
    return torch.linspace(-1, 1, count)[None, :, None]
