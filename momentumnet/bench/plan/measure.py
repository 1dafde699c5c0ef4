"""Planned training steps: what their plans predict, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.bench.plan.networks import PlannedNetwork
from momentumnet.bench.probe import step_memory
from momentumnet.bench.results import Row
from momentumnet.conversion import convert
from momentumnet.planner.fit import measured_step
from momentumnet.planner.training_plan import TrainingPlan
from momentumnet.planning import DEFAULT_GAMMA
from momentumnet.streams.trace import call_with_example

# Where between the least peak and that of stored activations the budgets beside "least" lie.
BUDGETS = {"middle": 0.5, "stored": 1.0}
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
    for name, plan in _plans(model, example, network, autocast).items():
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
) -> dict[str, TrainingPlan]:
    with autocast():
        step = measured_step(model, example, gamma=exact_gamma(DEFAULT_GAMMA), loss=network.loss)
        least = step.plan(None)
        most = {name: least.peak + share * (least.stored_peak - least.peak) for name, share in BUDGETS.items()}
        return {"least": least, **{name: step.plan(int(LEFT_FREE * peak)) for name, peak in most.items()}}
