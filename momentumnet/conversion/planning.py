"""What a conversion will do, before it does it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from momentumnet.conversion.planning_options import (
    check_gradients,
    check_no_loss,
    check_objective,
    check_offload,
    check_options,
    checked_budget,
    gamma_without_budget,
    gammas_within_budget,
)
from momentumnet.errors import ConversionError
from momentumnet.planner.machine.budget import ANEW, PRESENT, bytes_of
from momentumnet.planner.machine.garbage import full_collections_put_off
from momentumnet.streams.blocks.wrapped import check_is_module
from momentumnet.streams.finding.discover import discover
from momentumnet.streams.plan import AUTO, Plan

if TYPE_CHECKING:
    from momentumnet.planner.plans.training_plan import TrainingPlan

logger = logging.getLogger("momentumnet")


@overload
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction | None = ...,
    streams: Sequence[str] | None = ...,
    arithmetic: str = ...,
    backward: str = ...,
    others: str = ...,
    budget: None = ...,
    loss: None = ...,
) -> Plan: ...


@overload
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction | None = ...,
    streams: Sequence[str] | None = ...,
    arithmetic: str = ...,
    backward: str = ...,
    others: str = ...,
    spare: int = ...,
    budget: int | str,
    loss: Callable[[Any], Tensor] | None = ...,
    objective: str = ...,
    offload: bool = ...,
    gradients: str = ...,
) -> TrainingPlan: ...


@overload
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction | None = ...,
    streams: Sequence[str] | None = ...,
    arithmetic: str = ...,
    backward: str = ...,
    others: str = ...,
    spare: int,
    budget: int | str | None = ...,
    loss: Callable[[Any], Tensor] | None = ...,
    objective: str = ...,
    offload: bool = ...,
    gradients: str = ...,
) -> TrainingPlan: ...


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction | None = None,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = AUTO,
    others: str = "keep",
    spare: int = 0,
    budget: int | str | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    objective: str = "time",
    offload: bool = False,
    gradients: str = ANEW,
) -> Plan | TrainingPlan:
    """What `convert` with the same arguments will do; the model is left as it is.

    With a ``budget`` every block of the streams and every part outside is measured (bytes, and time forward and
    backward, on the example's device, under autocast where the call is), and for each is chosen whether its activations
    are stored, recomputed from an input that is kept, or recomputed from an input that the stream gives back: the
    choices that take the least time in so many bytes. At one gamma they all compute the same bits. Unless ``gamma`` is
    given, the network's own function (gamma 0) is planned as well, and momentum only taken where it is quicker, or
    where nothing else fits. Networks without a stream can be planned, too. On fake tensors (``FakeTensorMode``) or the
    meta device a step is planned that no machine at hand holds: bytes without the work space of kernels, times
    estimated from counts of operations. Prefer fake tensors of the device that is meant: on the meta device attention
    takes the way that keeps all scores.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        gamma: see `convert`; with a budget None is 0, or 1/8 where that takes less time in so many bytes. (In several
            processes, which all have to train the same function, it is 1/8.)
        streams: see `convert`.
        arithmetic: see `convert`.
        backward: see `convert`.
        others: see `convert`.
        spare: bytes that a step may take above the least: ``spare=2**30`` is a budget of the least and 1 GiB.
        budget: the most bytes that a step may allocate at once: a number, a text such as ``"4GiB"``, ``"least"`` for
            as few as there can be, or ``"device"`` for nine tenths of what is free now on the device of the model (on
            the CPU: of what the system and the process's container have left). Parameters, and what an optimizer keeps,
            come on top; gradients are counted, and so is what the model returns until the backward's end, as a training
            loop has a name for it. An optimizer that has not stepped yet has not taken its part of what is free.
        loss: the loss of the model's output, so that its bytes count; None for the output's own ``loss``, or a sum.
        objective: what is the least within a budget: "time", of a step.
        offload: beside a budget or ``spare``, on a CUDA device: activations may also go to host memory, pinned, and
            come back ahead of their backward, where that takes less time than to compute them again. (On tensors
            without values by an assumed link of 25 GB/s.) It has not been timed on a GPU yet.
        gradients: of parameters, which a budget counts either way: "anew" where each step makes them, as behind
            ``optimizer.zero_grad()``; "present" where they are there all the time, because the gradients of several
            batches are accumulated, or by ``zero_grad(set_to_none=False)``. A step takes more then, and other choices
            are the best: memory between forward and backward is what is short, no longer at the backward's end.

    Returns:
        The plan: ``print`` it, or read ``rows``, ``saved_before`` and ``saved_after`` (bytes). With a budget, a
        `TrainingPlan`, for ``convert(plan=...)``.

    Raises:
        ConversionError: no stream was found; the message says what was looked at. Or no choice fits the budget; it
            says what the least is, and what would help. Or ``offload`` is asked for on a device that computes in host
            memory.
        ValueError: an option has a value that it does not take.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        >>> plan = mn.plan(model, torch.randn(2, 5, 16))
        >>> [(row.path, row.blocks) for row in plan.rows]
        [('layers', 12)]
        >>> plan.saved_after < plan.saved_before
        True
    """
    check_is_module(model)
    is_planned = budget is not None or bool(spare)
    check_options(others, spare, backward, arithmetic)
    check_offload(offload, is_planned=is_planned)
    check_gradients(gradients, is_planned=is_planned)
    check_objective(objective)
    if not is_planned:
        check_no_loss(loss)
        return conversion_plan(
            model, example_inputs, gamma=gamma, streams=streams, arithmetic=arithmetic, backward=backward, others=others
        )
    found = step_plan(
        model,
        example_inputs,
        budget,
        gamma=gamma,
        streams=streams,
        arithmetic=arithmetic,
        backward=backward,
        others=others,
        spare=spare,
        loss=loss,
        offload=offload,
        gradients=gradients,
    )
    tell_of_gamma(model, found, gamma)
    return found


def tell_of_gamma(model: nn.Module, plan: TrainingPlan, gamma: float | Fraction | None) -> None:
    """Say so where a gamma was given, and there is nothing that could move by it."""
    if gamma and not plan.gamma:
        logger.warning(
            "no residual stream was found in %s, so that nothing moves by gamma=%s: by its plan it computes what it "
            "always did. What was looked at is said without a budget",
            type(model).__name__,
            gamma,
        )


def conversion_plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction | None,
    streams: Sequence[str] | None,
    arithmetic: str,
    backward: str,
    others: str,
) -> Plan:
    """What a conversion with these options does; `plan` says what they mean."""
    found = discover(model, example_inputs, streams=streams)
    if not found.streams:
        raise ConversionError(_nothing_found(model, found.rejections))
    return Plan(found, gamma_without_budget(gamma), backward, arithmetic, others)


@full_collections_put_off()
def step_plan(
    model: nn.Module,
    example_inputs: Any,
    budget: int | str | None,
    *,
    gamma: float | Fraction | None,
    streams: Sequence[str] | None,
    arithmetic: str,
    backward: str = AUTO,
    others: str = "keep",
    spare: int = 0,
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
    gradients: str = ANEW,
) -> TrainingPlan:
    """The choices that fit a budget, or the least and ``spare``; `plan` says what the options mean.

    Raises:
        ValueError: an option is given that the plan itself has to choose, or two that say how many bytes there are.
    """
    # Only who gives a budget waits for these.
    from momentumnet.planner.fit import measured_steps
    from momentumnet.planner.measuring.build import device_of
    from momentumnet.planner.measuring.step_loss import check_loss
    from momentumnet.planner.quickest import quickest_plan
    from momentumnet.planner.trial import trial_of

    budget = checked_budget(budget, spare, backward, others)
    if example_inputs is None:
        raise ConversionError("a budget, and bytes to spare, need example_inputs: the step that is to be planned")
    check_loss(loss)
    limit, gammas = bytes_of(budget, device_of(model, example_inputs)), gammas_within_budget(gamma)
    steps = measured_steps(
        model,
        example_inputs,
        gammas=gammas,
        streams=streams,
        arithmetic=arithmetic,
        loss=loss,
        offload=offload,
        gradients=gradients,
    )
    trial = trial_of(model, example_inputs, loss, present=gradients == PRESENT)
    return quickest_plan(steps, limit, spare=spare, trial=trial)


def _nothing_found(model: nn.Module, rejections: Sequence[Any]) -> str:
    looked = "\n".join(
        f"  - {r.path or '(root)'} ({', '.join(r.blocks[:4])}{', ...' if len(r.blocks) > 4 else ''}): {r.reason}"
        for r in list(rejections)[:20]
    )
    return (
        f"no residual stream found in {type(model).__name__}. A stream is two or more sibling modules, each mapping a "
        "tensor to the same shape with a skip connection inside, the output of one being the input of the next. "
        + (f"Looked at:\n{looked}\n" if looked else "No two sibling modules pass a tensor of one shape along. ")
        + "Without a stream there is no momentum; a budget of bytes recomputes what it takes all the same: "
        "convert(..., budget='4GiB'), or 'least' (on the command line --budget least)."
    )
