"""Chains that move by couplings beside momentum, and the papers' recurrences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP

RULES: list[Any] = [
    "bdia",
    "dr2net",
    mn.Dr2Net(alpha=0.9, beta=0.1),
    mn.Dr2Net(alpha=0.3, beta=0.7),
    mn.Dr2Net(alpha=0, beta=1),
]


rules = pytest.mark.parametrize("coupling", RULES, ids=str)


def rows(factor: float = 1.0) -> Tensor:
    return factor * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


def chain(depth: int) -> Chain:
    """Small branches: two connections of weight 1 let values grow with depth."""
    torch.manual_seed(0)
    model = Chain([ResidualMLP() for _ in range(depth)])
    for block in model.blocks:
        nn.init.normal_(block.inner[2].weight, std=0.1 / depth**0.5)
    return model


def converted(model: nn.Module, coupling: Any, backward: str = "reversible", **options: Any) -> nn.Module:
    return mn.convert(model, streams=["blocks"], coupling=coupling, backward=backward, **options)


def coefficients(coupling: Any) -> tuple[float, float]:
    """Alpha and beta."""
    return (1.0, 1 / 64) if coupling == "dr2net" else (float(coupling.alpha), float(coupling.beta))


def by_formula(model: Chain, coupling: Any, x: Tensor) -> Tensor:
    """The papers' recurrences in ordinary operations."""
    before, x = None, model.stem(x)
    for block in model.blocks:
        if coupling == "bdia":
            g = 0.0 if before is None else 0.5 if torch.randint(2, ()) else -0.5
            alpha, beta, weight = 1 - g, g, 1 + g
        else:
            (alpha, beta), weight = coefficients(coupling), 1.0
        ahead = alpha * x + weight * block.inner(x)
        x, before = ahead if before is None else ahead + beta * before, x
    return model.head(x)
