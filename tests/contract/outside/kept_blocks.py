"""Chains whose last blocks keep their activations, as a plan may choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP
from tests.tally import Tally

DEPTH, HIDDEN = 6, 4 * WIDTH


class Wide(ResidualMLP):
    """Keeps more than the stream's state takes."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HIDDEN)


class Counted(Wide):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])  # so that recomputes count

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x)


def chain(block: Callable[[], nn.Module] = Counted) -> Chain:
    torch.manual_seed(7)
    return Chain([block() for _ in range(DEPTH)])


def converted(model: nn.Module, example: Any, count: int, others: str = "keep", **options: Any) -> nn.Module:
    """Whose last ``count`` blocks keep their activations, and the modules between them that would be recomputed."""
    chosen = {name: options.pop(name) for name in ("gamma", "arithmetic") if name in options}
    plan = mn.plan(model, example, budget="least", **{"gamma": 1 / 8, **chosen})
    way = {True: options.pop("backward", "reversible"), False: "checkpointed" if others == "checkpoint" else "stored"}
    ways = [way[unit.stream is not None] for unit in plan.units]
    recomputed = [place for place, way in enumerate(ways) if way != "stored"]
    for place in recomputed[max(0, len(recomputed) - count) :] if count else ():
        ways[place] = "stored"
    units = [
        dataclasses.replace(unit, way=way, group=number)
        for number, (unit, way) in enumerate(zip(plan.units, ways, strict=True))
    ]
    return mn.convert(model, plan=dataclasses.replace(plan, units=tuple(units)), **options)
