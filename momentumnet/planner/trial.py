"""A plan tried out: the peak of a step that follows it, measured on a copy of the model."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.core.passes.collectives import processes
from momentumnet.memory import measure_memory
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.planner.measuring.alone import gradient_bytes
from momentumnet.planner.measuring.build import device_of
from momentumnet.planner.measuring.hollow import without_values
from momentumnet.planner.measuring.step_loss import total_of
from momentumnet.planner.plans.following import from_plan
from momentumnet.planner.plans.training_plan import PlannedUnit, TrainingPlan
from momentumnet.recompute.surroundings.autocast import Autocast
from momentumnet.streams.blocks.backward_hooks import backward_hooks_off
from momentumnet.streams.blocks.nested import copied
from momentumnet.streams.blocks.roles import apply
from momentumnet.streams.tracing.guard import left_as_found
from momentumnet.streams.tracing.trace import call_with_example

# Measures the peak of a step that follows a plan, in bytes; None if there is not so much memory.
Trial = Callable[[TrainingPlan], int | None]


def trial_of(
    model: nn.Module, example_inputs: Any, loss: Callable[[Any], Tensor] | None, *, present: bool = False
) -> Trial | None:
    """How plans for this step are tried out, gradients ``present`` before or not; None where they cannot be.

    Not without values, where parameters are no plain ones or the model cannot be copied (it holds a lock, or what an
    earlier forward computed), and in several processes, which would have to try as often.
    """
    plain = all(type(parameter) is nn.Parameter for parameter in model.parameters())
    if not plain or without_values(model, example_inputs) or processes() > 1:
        return None
    try:
        with torch.inference_mode(False):
            return _Trials(model, example_inputs, loss, present=present)
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, copy.Error):
        return None


class _Trials:
    """Trials of plans for one step; see `trial_of`."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, loss: Callable[[Any], Tensor] | None, *, present: bool
    ) -> None:
        self._model, self._example_inputs, self._loss, self._present = model, example_inputs, loss, present
        self._copies = [_copy_of(model)]  # for the first trial

    def __call__(self, plan: TrainingPlan) -> int | None:
        found = self._peak_of(plan)
        if found is None:  # for want of memory, which garbage may hold while collections are put off
            gc.collect()
            found = self._peak_of(plan)
        return found

    def _peak_of(self, plan: TrainingPlan) -> int | None:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(left_as_found(self._model, self._example_inputs, eval_mode=False))
            net = _following(self._copies.pop() if self._copies else _copy_of(self._model), plan)
            stack.enter_context(backward_hooks_off(net))
            example = copied(self._example_inputs)
            autocast = Autocast(device_of(self._model, self._example_inputs))
            stack.enter_context(autocast.suspended())

            def step() -> None:
                with autocast.replayed():  # which a training loop leaves behind the loss
                    output = call_with_example(net, example)  # held in backward, as in the prediction
                    total = total_of(output, self._loss)
                total.backward()

            try:
                if self._present:
                    step()  # which makes them
                there = sum(gradient_bytes(parameter.grad) for parameter in net.parameters())
                # The first one without them: it takes the most (streams learn their scales), and training has it too.
                return there + measure_memory(step).peak_bytes
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return None


def remembered(trial: Trial) -> Trial:
    """A trial that measures no plan twice."""
    known: dict[tuple[PlannedUnit, ...], int | None] = {}

    def tried(plan: TrainingPlan) -> int | None:
        if plan.units not in known:
            known[plan.units] = trial(plan)
        return known[plan.units]

    return tried


def _copy_of(model: nn.Module) -> nn.Module:
    """A copy whose parameters share the model's memory and have gradients of their own."""
    own = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict(own))


def _following(net: nn.Module, plan: TrainingPlan) -> nn.Module:
    """The network, converted in its place."""
    runners, roles = from_plan(net, plan, "drop" if plan.gamma == 1 else "flush")
    apply(net, runners, roles, plan.by_forward)
    return net
