"""Planned training steps: what their plans predict, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from momentumnet.bench.plan.networks import PlannedNetwork
from momentumnet.bench.probe import step_memory
from momentumnet.bench.results import Row
from momentumnet.conversion import convert
from momentumnet.planner.training_plan import TrainingPlan
from momentumnet.planning import plan as planned
from momentumnet.streams.trace import call_with_example

# Where between the least peak and that of stored activations the budgets lie.
BUDGETS = {"least": 0.0, "middle": 0.5, "stored": 1.0}
LEFT_FREE = 1.1  # of what a plan is to have


def measure(
    network: PlannedNetwork,
    batch: int,
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    advance: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for each budget.

    Args:
        network: What is trained.
        batch: Batch size.
        device: Where.
        dtype: Type of autocast; None for none.
        advance: Called once for each budget.
    """
    torch.manual_seed(0)
    model = network.build().to(device).train()
    example = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), network.example(batch))

    def autocast() -> AbstractContextManager[object]:
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    def step(net: nn.Module) -> None:
        net.zero_grad(set_to_none=True)
        with autocast():
            loss = network.loss(call_with_example(net, example))
        loss.backward()

    rows = []
    for name, plan in _plans(model, example, network, autocast):
        memory = step_memory(convert(model, plan=plan), step)
        ratio = plan.peak / memory.peak_bytes
        rows.append(
            {
                "budget": name,
                "predicted_bytes": plan.peak,
                "peak_bytes": memory.peak_bytes,
                "ratio": ratio,
                "predicted_held": plan.held,
                "saved_bytes": memory.saved_bytes,
            }
        )
        advance()
    return rows


def _plans(
    model: nn.Module, example: Any, network: PlannedNetwork, autocast: Callable[[], AbstractContextManager[object]]
) -> Iterator[tuple[str, TrainingPlan]]:
    least: TrainingPlan | None = None
    for name, share in BUDGETS.items():
        budget: int | str = "least"
        if least is not None:
            budget = int(LEFT_FREE * (least.peak + share * (least.stored_peak - least.peak)))
        with autocast():
            plan = planned(model, example, budget=budget, loss=network.loss)
        least = least or plan
        yield name, plan
