"""What a lottery came to: accuracy and speed of learning by sparsity, for tickets and their controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentumnet.figures import new_figure
from momentumnet.prune.lottery.trainings import Record
from momentumnet.prune.masking.masks import Masks


@dataclass(frozen=True)
class TicketTraining:
    """One training.

    Attributes:
        arm: "ticket", "reinitialised" or "random mask".
        round: Number of prunings before it; 0 for the dense network.
        kept: Parameters that the masks keep.
        total: Parameters that the masks are about.
        steps: The step at which it ended.
        accuracies: (step, accuracy) of each evaluation.
        distances: For each evaluation, the share of the masks' entries that pruning would have set otherwise than at
            the end; empty unless the lottery watched.
        kept_norm: Mean absolute value of the weights that are kept, before the training.
        removed_norm: The same of those that were taken away; nan where there are none.
        seconds: Duration.

    Example:
        >>> training = TicketTraining(
        ...     "ticket", 1, 20, 100, 300, ((100, 0.7), (200, 0.9), (300, 0.9)), (), 0.4, 0.1, 1.5
        ... )
        >>> training.sparsity, training.best, training.best_step
        (0.8, 0.9, 200)
    """

    arm: str
    round: int
    kept: int
    total: int
    steps: int
    accuracies: tuple[tuple[int, float], ...]
    distances: tuple[float, ...]
    kept_norm: float
    removed_norm: float
    seconds: float

    @classmethod
    def from_record(cls, arm: str, number: int, record: Record) -> TicketTraining:
        """Reads what the lottery keeps of a training."""
        masks: Masks = record["masks"]
        kept_norm, removed_norm = _norms(record["initial"], masks)
        return cls(
            arm=arm,
            round=number,
            kept=sum(int(mask.sum()) for mask in masks.values()),
            total=sum(mask.numel() for mask in masks.values()),
            steps=record["steps"],
            accuracies=tuple((step, accuracy) for step, accuracy in record["accuracies"]),
            distances=tuple(record["distances"]),
            kept_norm=kept_norm,
            removed_norm=removed_norm,
            seconds=record["seconds"],
        )

    @property
    def sparsity(self) -> float:
        """Share of the parameters that is gone, 0 to 1."""
        return 1 - self.kept / self.total

    @property
    def final(self) -> float | None:
        """The last accuracy; None if there is none."""
        return self.accuracies[-1][1] if self.accuracies else None

    @property
    def best(self) -> float | None:
        """The largest accuracy; None if there is none."""
        return max((accuracy for _, accuracy in self.accuracies), default=None)

    @property
    def best_step(self) -> int | None:
        """The first step at which it was reached."""
        return next((step for step, accuracy in self.accuracies if accuracy == self.best), None)


@dataclass(frozen=True)
class LotteryReport:
    """All trainings of a lottery; ``print(report)`` shows a table, ``report.plot(path)`` draws them.

    Attributes:
        trainings: Round by round, the ticket before its controls.

    Example:
        >>> dense = TicketTraining("ticket", 0, 100, 100, 300, ((300, 0.9),), (), 0.2, math.nan, 1.5)
        >>> print(LotteryReport((dense,)))
        round  sparsity  weights  network  final  best  at step  |w| kept  removed
            0    0.00 %      100    dense    0.9   0.9      300       0.2        -
    """

    trainings: tuple[TicketTraining, ...]

    def __str__(self) -> str:
        header = ("round", "sparsity", "weights", "network", "final", "best", "at step", "|w| kept", "removed")
        rows = [header, *map(_cells, self.trainings)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def values(self) -> list[dict[str, Any]]:
        """The trainings as plain values, for JSON."""
        return [
            {**asdict(training), "sparsity": training.sparsity, "best": training.best, "best_step": training.best_step}
            for training in self.trainings
        ]

    def plot(self, path: str | Path) -> None:
        """Draw accuracy, steps to the best accuracy, and norms of kept and removed weights, against sparsity.

        Args:
            path: Where to write; the ending chooses the format, as in ``matplotlib.pyplot.savefig``.

        Raises:
            ImportError: matplotlib is not installed (``pip install momentumnet[cli]``).
        """
        figure = new_figure("report.plot", 13, 4)
        accuracy, speed, norms = figure.subplots(1, 3)
        dense = [training for training in self.trainings if training.round == 0]
        for arm in dict.fromkeys(training.arm for training in self.trainings):
            own = [training for training in self.trainings if training.arm == arm and training.round]
            own = dense + own  # the arms have the dense network in common
            x = [100 * training.sparsity for training in own]
            accuracy.plot(x, [_number(training.best) for training in own], marker=".", label=arm)
            speed.plot(x, [_number(training.best_step) for training in own], marker=".", label=arm)
        tickets = [training for training in self.trainings if training.arm == self.trainings[0].arm]
        x = [100 * training.sparsity for training in tickets]
        norms.plot(x, [training.kept_norm for training in tickets], marker=".", label="kept")
        norms.plot(x, [training.removed_norm for training in tickets], marker=".", label="removed")
        titles = ("best accuracy", "step of the best accuracy", "tickets: mean |w| before training")
        for axis, title in zip((accuracy, speed, norms), titles, strict=True):
            axis.set(title=title, xlabel="sparsity, %")
            axis.legend()
        figure.savefig(path)


def _norms(weights: Mapping[str, Tensor], masks: Masks) -> tuple[float, float]:
    """Mean absolute values under the masks and outside of them."""
    kept = torch.cat([weights[name][mask].double().flatten() for name, mask in masks.items()])
    removed = torch.cat([weights[name][~mask].double().flatten() for name, mask in masks.items()])
    return tuple(float(part.abs().mean()) if len(part) else math.nan for part in (kept, removed))  # type: ignore[return-value]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _cells(training: TicketTraining) -> tuple[str, ...]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None or math.isnan(value) else format(value, form)

    return (
        str(training.round),
        f"{100 * training.sparsity:.2f} %",
        str(training.kept),
        training.arm if training.round else "dense",
        text(training.final, ".4g"),
        text(training.best, ".4g"),
        text(training.best_step, "d"),
        text(training.kept_norm, ".4g"),
        text(training.removed_norm, ".4g"),
    )
