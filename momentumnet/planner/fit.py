"""Measuring the training step of a model, to be planned for whatever budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from momentumnet.errors import ConversionError
from momentumnet.planner.machine.budget import ANEW, PRESENT
from momentumnet.planner.machine.garbage import full_collections_put_off
from momentumnet.planner.machine.host_link import link_of
from momentumnet.planner.measuring.build import device_of, profiles_of
from momentumnet.planner.plans.batch_watch import autocast_of, elements_of
from momentumnet.planner.plans.made_for import classes_of
from momentumnet.planner.plans.parameter_bytes import parameter_bytes_of, trained_in
from momentumnet.planner.searching.options import Options
from momentumnet.planner.step_plans import MeasuredStep
from momentumnet.streams.blocks.containers import sizes_of
from momentumnet.streams.blocks.converted import is_converted
from momentumnet.streams.blocks.nested import tensors_in
from momentumnet.streams.finding.discover import discover


def measured_step(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: Fraction,
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
    gradients: str = ANEW,
) -> MeasuredStep:
    """Trace and measure a training step; see `measured_steps`."""
    (step,) = measured_steps(model, example_inputs, gammas=(gamma,), loss=loss, offload=offload, gradients=gradients)
    return step


@full_collections_put_off()
def measured_steps(
    model: nn.Module,
    example_inputs: Any,
    *,
    gammas: Sequence[Fraction],
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
    gradients: str = ANEW,
) -> list[MeasuredStep]:
    """Trace and measure a training step, once.

    Args:
        model: the network, unconverted; it is left as it was found.
        example_inputs: as `momentumnet.convert` takes them.
        gammas: of the streams; there is a step for each, or one alone, at 0, where the network has no stream.
        streams: container paths to restrict them to.
        arithmetic: of the streams.
        loss: of the model's output.
        offload: whether saved tensors may go to host memory.
        gradients: of parameters, "anew" or "present"; see `momentumnet.plan`.

    Raises:
        ConversionError: the model has nothing that could be recomputed, is to be offloaded from host memory, or is
            converted: what its blocks keep then is not what a plan would have them keep.
    """
    if is_converted(model):
        raise ConversionError(
            f"this {type(model).__name__} is converted already, and a step is planned with the network as it was: give "
            "that one, or momentumnet.revert(model)"
        )
    found = discover(model, example_inputs, streams=streams)
    gammas = gammas if found.streams else (Fraction(0),)  # nothing moves by it
    profiles = profiles_of(
        model, example_inputs, found, gammas=gammas, arithmetic=arithmetic, loss=loss, present=gradients == PRESENT
    )
    if offload:
        link = link_of(device_of(model, example_inputs), hollow=profiles[0].estimated)
        profiles = [replace(profile, link=link) for profile in profiles]
    if not profiles[0].units:
        raise ConversionError(
            f"{type(model).__name__} has no part that could be recomputed, so there is nothing to plan"
        )
    names = [name for unit in profiles[0].units for name in unit.names]
    told = {"arithmetic": arithmetic, "gradients": gradients, **_told_of(model, example_inputs, names)}
    return [
        MeasuredStep(found, Options(profile), gamma, **told) for gamma, profile in zip(gammas, profiles, strict=True)
    ]


def _told_of(model: nn.Module, example_inputs: Any, names: Sequence[str]) -> dict[str, Any]:
    """What plans of the step will say that they were made for; ``names`` are those of its units' modules."""
    device = device_of(model, example_inputs)
    return {
        "batch": _batch_of(example_inputs),
        "elements": elements_of(example_inputs),
        "containers": tuple(sizes_of(model, names).items()),
        "parameter_bytes": parameter_bytes_of(model.parameters()),
        "autocast": autocast_of(device),
        "trained_bytes": parameter_bytes_of(trained_in(model)),
        "training": model.training,
        "classes": classes_of(model, names),
        "exact_bytes": device.type == "cpu",
    }


def _batch_of(example_inputs: Any) -> int | None:
    """The batch size that all tensors of the example have in front; None if they have none in common."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_in(example_inputs)}
    return sizes.pop() if len(sizes) == 1 else None
