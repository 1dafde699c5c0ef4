"""The initialisations that ``bench init-text`` compares, and the options that are searched for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet import init
from momentumnet.bench.init_text.networks import FREE
from momentumnet.loss.batches import Batch

PLAIN, WARMUP, GRADINIT, METAINIT, TFIXUP = "plain", "warmup", "gradinit", "metainit", "tfixup"
METHODS = (PLAIN, WARMUP, GRADINIT, METAINIT, TFIXUP)
LEARNED = (GRADINIT, METAINIT)
ADAM, SGD = "adam", "sgd"


@dataclass(frozen=True)
class Choice:
    """Options of an initialisation that learns.

    Attributes:
        tau: Its learning rate: of GradInit's scales, or of MetaInit's norms.
        eta: GradInit's inner step, as a multiple of the learning rate of the training; None for MetaInit.
        fall: By how much that step may lower the loss to first order, which bounds the gradient's norm; None for
            MetaInit.
    """

    tau: float
    eta: float | None = None
    fall: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Choice:
        """That of a row of the search."""
        return cls(row["tau"], row["eta"], row["fall"])


@dataclass(frozen=True)
class Grid:
    """What is tried for initialisations that learn.

    Attributes:
        taus: Of GradInit.
        etas: Of GradInit, as multiples of the training's rate.
        falls: Of GradInit.
        metainit_taus: Of MetaInit.
    """

    taus: Sequence[float]
    etas: Sequence[float]
    falls: Sequence[float]
    metainit_taus: Sequence[float]

    def choices(self, method: str) -> list[Choice]:
        """All that are tried for a method; none for one that does not learn."""
        if method == GRADINIT:
            return [Choice(*values) for values in itertools.product(self.taus, self.etas, self.falls)]
        return [Choice(tau) for tau in self.metainit_taus] if method == METAINIT else []


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of all next tokens."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def suits(network: str, method: str) -> bool:
    """Whether a method is for a network: T-Fixup is for the one without norms, the others for those with."""
    return (network == FREE) == (method == TFIXUP)


def bound(optimizer: str, step_size: float, fall: float) -> float:
    """The largest norm of the gradient: where the first step lowers the loss by ``fall`` to first order.

    The 2-norm for SGD, which lowers it by eta |g|_2^2: 1 for the step size of 0.1 and the fall of 0.1 that the authors'
    settings come to. The 1-norm for Adam, which lowers it by eta |g|_1.
    """
    square = fall / step_size
    return square**0.5 if optimizer == SGD else square


def gradinit(
    model: nn.Module, batches: Iterable[Batch], *, optimizer: str, rate: float, choice: Choice, steps: int
) -> dict[str, Any]:
    """GradInit for an optimizer that trains at ``rate``.

    Returns:
        Its options as they were, and what it found: norms of the gradient and the objective at first and at last, in
        how many steps the bound was met, and the smallest and largest scale.
    """
    if choice.eta is None or choice.fall is None:
        raise ValueError(f"GradInit takes a choice with eta and fall, got {choice}")
    step_size = choice.eta * rate
    limit = bound(optimizer, step_size, choice.fall)
    options: dict[str, Any] = {"step_size": step_size, "gradient_norm": limit, "lr": choice.tau, "steps": steps}
    report = init.gradinit_(model, loss_of, batches, optimizer=optimizer, progress=False, **options)
    return {
        **options,
        "optimizer": optimizer,
        "gradient_norms": _ends(report.gradient_norms),
        "objective": _ends(report.losses),
        "met": len(report.losses),
        "scales": [min(report.scales.values()), max(report.scales.values())],
    }


def metainit(model: nn.Module, batches: Iterable[Batch], *, tau: float, steps: int) -> dict[str, Any]:
    """MetaInit; returns its options, and its objective at first and at last with the smallest and largest scale."""
    report = init.metainit_(model, loss_of, batches, lr=tau, steps=steps, progress=False)
    scales = [min(report.scales.values()), max(report.scales.values())]
    return {"lr": tau, "steps": steps, "objective": _ends(report.losses), "scales": scales}


def _ends(course: Sequence[float]) -> list[float]:
    return [course[0], course[-1]] if course else []


def tfixup(model: nn.Module, tokens: Tensor) -> dict[str, Any]:
    """T-Fixup, which takes the norms out; returns what it did."""
    return {"notes": list(init.tfixup_(model, tokens, remove_normalization=True).notes)}
