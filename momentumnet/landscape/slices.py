"""The loss along a line and on a plane through the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.figures import new_figure
from momentumnet.landscape.directions import Direction, filter_normalised_direction, parts_of, seeded
from momentumnet.landscape.surface import LossSurface, measured
from momentumnet.loss.batches import LossFunction
from momentumnet.options import positive, whole

LEVELS = 20


@dataclass(frozen=True)
class LossLine:
    """The loss at points ``w + t d``.

    Attributes:
        distances: t, float64, shape (n,).
        losses: float64, shape (n,).

    Example:
        >>> model, batch = nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1))
        >>> direction = filter_normalised_direction(model)
        >>> line = loss_along(model, nn.functional.mse_loss, batch, direction, distances=[-1, 0, 1])
        >>> line.distances.tolist(), line.losses.shape
        ([-1.0, 0.0, 1.0], torch.Size([3]))
    """

    distances: Tensor
    losses: Tensor

    def plot(self, path: str | Path) -> None:
        """Draw the loss by distance to an image file, whose ending chooses the format.

        Raises:
            ImportError: matplotlib is not installed (``pip install momentumnet[cli]``).
        """
        figure = new_figure("LossLine.plot", 5, 4)
        axes = figure.subplots()
        axes.plot(self.distances.tolist(), self.losses.tolist(), marker=".")
        axes.set(xlabel="distance along the direction", ylabel="loss")
        figure.savefig(path)


@dataclass(frozen=True)
class LossPlane:
    """The loss at points ``w + a_i d + b_j e``.

    Attributes:
        first: a, float64, shape (n,).
        second: b, float64, shape (n,).
        losses: float64, shape (n, n): ``losses[i, j]`` at a_i and b_j.

    Example:
        >>> model, batch = nn.Linear(2, 2), (torch.ones(4, 2), torch.zeros(4, 2))
        >>> plane = loss_plane(model, nn.functional.mse_loss, batch, points=3)
        >>> plane.first.tolist(), plane.losses.shape
        ([-1.0, 0.0, 1.0], torch.Size([3, 3]))
    """

    first: Tensor
    second: Tensor
    losses: Tensor

    def plot(self, path: str | Path) -> None:
        """Draw contours of the loss to an image file, whose ending chooses the format; what is not finite stays white.

        Raises:
            ImportError: matplotlib is not installed (``pip install momentumnet[cli]``).
        """
        figure = new_figure("LossPlane.plot", 5, 4)
        axes = figure.subplots()
        losses = torch.where(self.losses.isfinite(), self.losses, torch.nan).T.tolist()
        lines = axes.contour(self.first.tolist(), self.second.tolist(), losses, levels=LEVELS)
        figure.colorbar(lines, ax=axes, label="loss")
        axes.plot([0], [0], marker="+", color="black")
        axes.set(xlabel="first direction", ylabel="second direction", aspect="equal")
        figure.savefig(path)


def loss_along(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    direction: Direction,
    *,
    distances: Iterable[float],
    chunk: int | None = None,
) -> LossLine:
    """The loss at ``w + t d`` for each distance t.

    Measured without gradients in the mode that the model is in, which is left as it was; see `sharpness`. A value that
    is not finite is returned as it is.

    Args:
        model: Any module, converted or not.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar.
        batch: ``(inputs, targets)``; inputs are a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        direction: Tensors by the names of trainable parameters; those that it does not name stay. For instance from
            `filter_normalised_direction`, or the difference to another network's parameters.
        distances: The values of t.
        chunk: Takes so many samples at a time; exact for a loss that is a mean over samples.

    Raises:
        TypeError: The batch is no pair.
        ValueError: The direction does not fit the model's trainable parameters, or an option cannot be.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> nn.init.constant_(model.weight, 2.0).item()
        2.0
        >>> data = torch.ones(1, 1), None
        >>> direction = {"weight": torch.ones(1, 1)}
        >>> line = loss_along(model, lambda y, _: y.sum() ** 2, data, direction, distances=[-2, 0, 1])
        >>> line.losses.tolist()
        [0.0, 4.0, 9.0]
    """
    steps = torch.as_tensor(list(distances), dtype=torch.float64)
    with measured(model, loss_fn, batch, chunk) as surface:
        along = _flat(surface, direction)
        return LossLine(steps, _losses(surface, (t * along for t in steps.tolist())))


def loss_plane(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    directions: tuple[Direction, Direction] | None = None,
    span: float = 1.0,
    points: int = 21,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> LossPlane:
    """The loss at ``w + a d + b e`` for a and b from -span to span (Li et al., NeurIPS 2018, section 4).

    Costs ``points ** 2`` forward passes. As `loss_along` for the rest.

    Args:
        model: Any module, converted or not.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar.
        batch: ``(inputs, targets)``.
        directions: d and e, as in `loss_along`; by default two from `filter_normalised_direction`.
        span: Largest a and b. With filter-normalised directions 1 changes each filter by its own norm.
        points: Values of a, and of b; with an odd number the parameters themselves are among the points.
        chunk: Takes so many samples at a time; exact for a loss that is a mean over samples.
        generator: Draws the directions where none are given; by default one with seed 0.

    Raises:
        TypeError: The batch is no pair.
        ValueError: The directions are not two that fit the model's trainable parameters, or an option cannot be.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> plane = loss_plane(model, nn.functional.mse_loss, (torch.ones(1, 2), torch.ones(1, 2)), points=5)
        >>> plane.losses.shape
        torch.Size([5, 5])
    """
    positive("span", span)
    whole("points", points)
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    if directions is None:
        generator = seeded(generator)
        first = filter_normalised_direction(model, generator=generator)
        directions = first, filter_normalised_direction(model, generator=generator)
    if len(directions) != 2:
        raise ValueError(f"directions must be two, got {len(directions)}")
    steps = span * torch.arange(1 - points, points, 2, dtype=torch.float64) / (points - 1)  # 0 itself in the middle
    with measured(model, loss_fn, batch, chunk) as surface:
        d, e = (_flat(surface, direction) for direction in directions)
        losses = [_losses(surface, (a * d + b * e for b in steps.tolist())) for a in steps.tolist()]
    return LossPlane(steps, steps, torch.stack(losses))


def _flat(surface: LossSurface, direction: Direction) -> Tensor:
    return surface.flat(parts_of(direction, surface.names, surface.parameters))


def _losses(surface: LossSurface, moves: Iterable[Tensor]) -> Tensor:
    return torch.tensor([surface.value(move) for move in moves], dtype=torch.float64)
