"""Planned training steps: what their plans predict, and what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.bench.measuring.probe import step_memory
from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.plan.networks import PlannedNetwork
from momentumnet.bench.reporting.results import Row
from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning_options import DEFAULT_GAMMA
from momentumnet.planner.fit import measured_step
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.streams.tracing.trace import call_with_example

# Where between the least peak and that of stored activations the budgets beside "least" lie.
BUDGETS = {"middle": 0.5, "stored": 1.0}
LEFT_FREE = 1.1  # of what a plan is to have
STEPS = 3  # timed ones of the network as it is, beside which planning is timed


def measure(
    network: PlannedNetwork,
    batch: int,
    device: torch.device,
    *,
    dtype: torch.dtype | None,
    advance: Callable[[], object] = lambda: None,
) -> list[Row]:
    """A row for each budget; with how long it took to plan for the least, and how long a step of the network as it is.

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
            output = call_with_example(net, example)  # held to the step's end, as plans count it
            loss = network.loss(output)
        loss.backward()

    rows = []
    plans, planning_seconds = _plans(model, example, network, autocast)
    [step_seconds] = interleaved_seconds({"step": lambda: step(model)}, repeats=STEPS, device=device).values()
    for name, plan in plans.items():
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
                "planning_seconds": planning_seconds,
                "step_seconds": step_seconds,
            }
        )
        advance()
    return rows


def _plans(
    model: nn.Module, example: Any, network: PlannedNetwork, autocast: Callable[[], AbstractContextManager[object]]
) -> tuple[dict[str, TrainingPlan], float]:
    """The plans, and the seconds until the first, of the least budget, was there."""
    start = time.perf_counter()
    with autocast():
        step = measured_step(model, example, gamma=exact_gamma(DEFAULT_GAMMA), loss=network.loss)
        least = step.plan(None)
        seconds = time.perf_counter() - start
        most = {name: least.peak + share * (least.stored_peak - least.peak) for name, share in BUDGETS.items()}
        others = {name: step.plan(int(LEFT_FREE * peak)) for name, peak in most.items()}
    return {"least": least, **others}, seconds
