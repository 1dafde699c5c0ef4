"""Batches larger than those of a plan."""

from __future__ import annotations

from torch import nn

import momentumnet as mn
from tests.planner.wide import chain, rows

TOLD = "was planned for inputs of"


def step(net: nn.Module, batch: int) -> None:
    net(rows(batch)).square().mean().backward()
    net.zero_grad(set_to_none=True)


def ways(net: nn.Module) -> tuple[str, int]:
    stream = mn.describe(net)["streams"][0]
    return stream["backward"], stream["kept"]


GAMMA = 1 / 8


BUDGET = mn.plan(chain(), rows(64), gamma=GAMMA, budget="least").peak * 5 // 4
