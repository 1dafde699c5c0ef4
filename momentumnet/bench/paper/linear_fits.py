"""Fits of linear maps by networks of linear layers: what the theory of `linear_maps` says can be reached, and what not.

Layers that share one residual function, short steps: the setting of the theory. Without either, both networks reach
more: one ResNet layer of its own weights is any map, ``x + (D - Id) x``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet.bench.paper.blocks import LinearBlock, network
from momentumnet.bench.paper.linear_maps import lowest_factor, momentum_of, representable
from momentumnet.bench.reporting.results import Row

Matrix = list[list[float]]
SWEEP = (-1.2, -1.0, -0.8, -0.7, -0.5, -0.3, -0.1, 0.1, 0.5, 1.0)  # maps of the line
TARGETS: dict[str, Matrix] = {
    **{f"{factor:g}": [[factor]] for factor in SWEEP},
    "quarter turn": [[0.0, -1.0], [1.0, 0.0]],
    "half turn, -Id": [[-1.0, 0.0], [0.0, -1.0]],
    "-2 Id": [[-2.0, 0.0], [0.0, -2.0]],
    "diag(-2, -1)": [[-2.0, 0.0], [0.0, -1.0]],
    "swap": [[0.0, 1.0], [1.0, 0.0]],
    "0.8 swap": [[0.0, 0.8], [0.8, 0.0]],
    "0.3 swap": [[0.0, 0.3], [0.3, 0.0]],
    "sheared, -0.3 and 0.5": [[0.5, 1.0], [0.0, -0.3]],
}
DIMENSIONS = sorted({len(matrix) for matrix in TARGETS.values()})
ARRIVED = 1e-3  # distance to the target at which a fit is said to have arrived
EPSILONS = {"ResNet": 0.0, "Momentum ResNet, epsilon 1": 1.0, "Momentum ResNet, epsilon 4": 4.0}


@dataclass(frozen=True)
class LinearMaps:
    """Fits each of `TARGETS` with each network, from several random starts in each seed.

    Attributes:
        steps: Steps of Adam; its learning rate falls to 0 as a cosine.
        starts: Random starts from each seed, of which the best counts: the distance has local minima.
        depth: Layers, an even number, which share Theta: ``f(x) = Theta x / depth``.
    """

    steps: int
    starts: int = 16
    depth: int = 32

    name: ClassVar[str] = "linear"
    models: ClassVar[Sequence[str]] = tuple(EPSILONS)

    def settings(self) -> dict[str, Any]:
        """All that it takes to do it again, as plain values."""
        return {
            "experiment": self.name,
            **vars(self),
            "epsilon": dict(EPSILONS),
            "gamma": {model: momentum_of(epsilon, self.depth) for model, epsilon in EPSILONS.items()},
            "residual function": "Theta x / depth, shared by all layers",
            "first Theta": "normal, standard deviation as below",
            "deviation of the first Theta": {model: _scale(epsilon) for model, epsilon in EPSILONS.items()},
            "first velocity": 0,
            "loss": "squared Frobenius distance to the target",
            "optimizer": "Adam, betas 0.9 and 0.999, learning rate falling to 0 as a cosine",
            "learning rates": {model: _scale(epsilon) / 20 for model, epsilon in EPSILONS.items()},
            "targets": TARGETS,
            "type": "float64",
        }

    def rows(self, model: str, seeds: Sequence[int], advance: Callable[[], object] = lambda: None) -> list[Row]:
        """Fits all targets from each seed, side by side; ``advance`` is called after each step.

        Returns:
            A row for each target and seed: what theory says, how many starts arrived, and of the best one the map that
            was reached, its distance and its Theta.
        """
        found = []
        for dimension in DIMENSIONS:
            targets = {name: matrix for name, matrix in TARGETS.items() if len(matrix) == dimension}
            theta, reached = self._fit(list(targets.values()), EPSILONS[model], seeds, advance)
            for place, name in enumerate(targets):
                for index, seed in enumerate(seeds):
                    own = self._outcome(targets[name], EPSILONS[model], theta[place, index], reached[place, index])
                    found.append({"model": model, "seed": seed, "target": name, **own})
        return found

    def _outcome(self, target: Matrix, epsilon: float, theta: Tensor, reached: Tensor) -> Row:
        distances = torch.linalg.matrix_norm(reached - reached.new_tensor(target))
        best = int(distances.argmin())
        return {
            "representable": representable(target, lowest_factor(epsilon, self.depth)),
            "distance": float(distances[best]),
            "arrived": int((distances < ARRIVED).sum()),
            "reached": reached[best].tolist(),
            "theta": theta[best].tolist(),
        }

    def _fit(
        self, targets: Sequence[Matrix], epsilon: float, seeds: Sequence[int], advance: Callable[[], object]
    ) -> tuple[Tensor, Tensor]:
        """Theta and the maps reached, both (targets, seeds, starts, dimension, dimension)."""
        wanted = torch.tensor(targets, dtype=torch.float64)[:, None, None]
        shape = (len(targets), self.starts, *wanted.shape[-2:])
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        block = LinearBlock(_scale(epsilon) * torch.stack(drawn, 1), self.depth)
        model = network(block, self.depth, momentum_of(epsilon, self.depth))
        unit = torch.eye(shape[-1], dtype=torch.float64).expand_as(block.theta)
        optimizer = Adam(block.parameters(), lr=_scale(epsilon) / 20)
        scheduler = CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            optimizer.zero_grad()
            (model(unit).mT - wanted).square().sum().backward()  # rows are points, hence the transposed map
            optimizer.step()
            scheduler.step()
            advance()
        with torch.no_grad():
            return block.theta.detach(), model(unit).mT


def _scale(epsilon: float) -> float:
    """Where the first Theta are: lambda_epsilon is at ``-epsilon pi**2``."""
    return 10 * epsilon or 2.0
