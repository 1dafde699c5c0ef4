"""What the trained toy experiments share: a network of one repeated residual function, trained from several seeds."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet.bench.paper.blocks import TanhBlock, network
from momentumnet.bench.reporting.results import Row

RESNET, MOMENTUM, LONG_STEPS = "ResNet", "Momentum ResNet", "ResNet, long steps"
DRAWN = 1_000_000  # the points of seed s are drawn from seed s + DRAWN, its first weights from s


@dataclass(frozen=True)
class FlowExperiment(abc.ABC):
    """A toy problem, and how a ResNet and a Momentum ResNet of the same size are trained on it.

    Attributes:
        steps: Steps of Adam; its learning rate falls to 0 as a cosine.
        points: New points in each step (rings: in each ring).
        depth: Layers, which share one residual function.
        hidden: Width of the residual function ``W2 tanh(W1 x + b1) + b2``.
        gamma: Of the Momentum ResNet; its velocity begins at 0.
    """

    steps: int
    points: int
    depth: int = 15
    hidden: int = 16
    gamma: float = 0.99

    name: ClassVar[str]
    dimension: ClassVar[int]
    rates: ClassVar[Mapping[str, float]]

    @property
    def models(self) -> Sequence[str]:
        """What is trained."""
        return tuple(self.rates)

    @abc.abstractmethod
    def sample(self, generator: torch.Generator, points: int) -> tuple[Tensor, Tensor]:
        """Points, and what is wanted of them."""

    @abc.abstractmethod
    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """The loss of each seed, from (seeds, points, dimension)."""

    @abc.abstractmethod
    def measures(self, block: TanhBlock, gamma: float, seeds: Sequence[int]) -> list[Row]:
        """What the trained networks of the seeds came to."""

    @abc.abstractmethod
    def task(self) -> dict[str, Any]:
        """What is learned, as plain values."""

    def settings(self) -> dict[str, Any]:
        """All that it takes to do it again, as plain values."""
        return {
            "experiment": self.name,
            **self.task(),
            **vars(self),
            "residual function": "W2 tanh(W1 x + b1) + b2, shared by all layers",
            "first weights": "uniform within 1 / sqrt(fan in)",
            "first velocity": 0,
            "optimizer": "Adam, betas 0.9 and 0.999, learning rate falling to 0 as a cosine",
            "learning rates": dict(self.rates),
            "type": "float32",
        }

    def gamma_of(self, model: str) -> float:
        """The momentum factor of a model."""
        return self.gamma if model == MOMENTUM else 0.0

    def rows(self, model: str, seeds: Sequence[int], advance: Callable[[], object] = lambda: None) -> list[Row]:
        """Trains a model from each seed, side by side; ``advance`` is called after each step.

        Returns:
            A row for each seed: what it came to, how steep its residual function is, and its weights.
        """
        block, gamma = TanhBlock(seeds, self.dimension, self.hidden), self.gamma_of(model)
        self._train(block, gamma, self.rates[model], seeds, advance)
        found = []
        for index, (seed, own) in enumerate(zip(seeds, self.measures(block, gamma, seeds), strict=True)):
            values = block.values(index)
            whole = all(bool(parameter[index].isfinite().all()) for parameter in block.parameters())
            outcome = {**own, "weights": values} if whole else {"error": "diverged: its weights are no numbers"}
            found.append({"model": model, "seed": seed, **outcome})
        return found

    def _train(
        self, block: TanhBlock, gamma: float, rate: float, seeds: Sequence[int], advance: Callable[[], object]
    ) -> None:
        model = network(block, self.depth, gamma)
        generators = [torch.Generator().manual_seed(DRAWN + seed) for seed in seeds]
        optimizer = Adam(block.parameters(), lr=rate)
        scheduler = CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            x, wanted = self._samples(generators, self.points)
            optimizer.zero_grad()
            self.loss(model(x), wanted).sum().backward()  # each seed's gradient is that of its own loss
            optimizer.step()
            scheduler.step()
            advance()

    def _samples(self, generators: Sequence[torch.Generator], points: int) -> tuple[Tensor, Tensor]:
        drawn = [self.sample(generator, points) for generator in generators]
        return torch.stack([x for x, _ in drawn]), torch.stack([wanted for _, wanted in drawn])

    def steepness(self, block: TanhBlock, frames: Tensor) -> list[float]:
        """Of each seed the largest singular value of f's derivative where the layers are called, in a `flow`.

        Where it is less than 1 everywhere, x + f(x) is one-to-one, and trajectories of a ResNet cannot cross.
        """
        with torch.no_grad():
            visited = [
                torch.linalg.matrix_norm(block.jacobians(place).nan_to_num(), ord=2).amax(1) for place in frames[:-1]
            ]
        largest: list[float] = torch.stack(visited).amax(0).tolist()
        return largest
