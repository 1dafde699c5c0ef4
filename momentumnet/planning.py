"""What a conversion will do, before it does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.streams.discover import discover
from momentumnet.streams.plan import AUTO, Plan

if TYPE_CHECKING:
    from momentumnet.planner.search import Options
    from momentumnet.planner.training_plan import TrainingPlan

OTHERS = ("keep", "checkpoint")
DEFAULT_GAMMA = 0.125


@overload
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction = ...,
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
    gamma: float | Fraction = ...,
    streams: Sequence[str] | None = ...,
    arithmetic: str = ...,
    backward: str = ...,
    others: str = ...,
    spare: int = ...,
    budget: int | str,
    loss: Callable[[Any], Tensor] | None = ...,
    offload: bool = ...,
) -> TrainingPlan: ...


@overload
def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction = ...,
    streams: Sequence[str] | None = ...,
    arithmetic: str = ...,
    backward: str = ...,
    others: str = ...,
    spare: int,
    budget: int | str | None = ...,
    loss: Callable[[Any], Tensor] | None = ...,
    offload: bool = ...,
) -> TrainingPlan: ...


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction = DEFAULT_GAMMA,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = AUTO,
    others: str = "keep",
    spare: int = 0,
    budget: int | str | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
) -> Plan | TrainingPlan:
    """What `convert` with the same arguments will do; the model is left as it is.

    With a ``budget`` every block of the streams and every part outside is measured (bytes, and time forward and
    backward, on the example's device, under autocast where the call is), and for each is chosen whether its activations
    are stored, recomputed from an input that is kept, or recomputed from an input that the stream gives back: the
    choices that take the least time in so many bytes. They all compute the same bits. Networks without a stream
    can be planned, too. On fake tensors (``FakeTensorMode``) or the meta device a step is planned that no machine at
    hand holds: bytes without the work space of kernels, times estimated from counts of operations. Prefer fake tensors
    of the device that is meant: on the meta device attention takes the way that keeps all scores.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        gamma: see `convert`.
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
        offload: beside a budget or ``spare``, on a CUDA device: activations may also go to host memory, pinned, and
            come back ahead of their backward, where that takes less time than to compute them again. (On tensors
            without values by an assumed link of 25 GB/s.) It has not been timed on a GPU yet.

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
    check_options(others, spare, backward)
    check_offload(offload, is_planned=budget is not None or bool(spare))
    if budget is None and not spare:
        if loss is not None:
            raise ValueError("loss= is measured for a budget; give one, e.g. budget='4GiB', or leave it out")
        return conversion_plan(
            model,
            example_inputs,
            gamma=gamma,
            streams=streams,
            arithmetic=arithmetic,
            backward=backward,
            others=others,
        )
    return step_plan(
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
    )


def largest_batch(
    model: nn.Module,
    make_example: Callable[[int], Any],
    budget: int | str,
    *,
    gamma: float | Fraction = DEFAULT_GAMMA,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    loss: Callable[[Any], Tensor] | None = None,
    most: int = 1 << 16,
) -> int:
    """The largest batch of which a training step fits a budget: for it `plan` finds choices, for one more it does not.

    The step is measured at a batch of two, the peak predicted for others, and the answer tried out: that it fits, and
    that one more does not. Some ten batches are measured as a rule, none of them much larger than the answer.

    Args:
        model: the network, which is left as it is.
        make_example: gives example inputs for a batch size, as `plan` takes them, on the device to train on.
        budget: see `plan`; not ``"least"``.
        gamma: see `convert`.
        streams: see `convert`.
        arithmetic: see `convert`.
        loss: see `plan`.
        most: the largest batch to look at.

    Raises:
        ConversionError: a batch of one does not fit; says what `plan` says of a budget that is too small.
        ValueError: the budget is no number of bytes, or the inputs are the same for each batch size.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> def make_example(batch_size):
        ...     return torch.randn(batch_size, 8, 16)
        >>> size = mn.largest_batch(model, make_example, "1MiB")
        >>> converted = mn.convert(model, make_example(size), budget="1MiB")
    """
    from momentumnet.planner.batch import largest_planned, largest_tried
    from momentumnet.planner.budget import bytes_of
    from momentumnet.planner.build import device_of
    from momentumnet.planner.fit import measured_step

    limit, ratio = bytes_of(budget, device_of(model, ())), exact_gamma(gamma)
    if limit is None:
        raise ValueError(f"budget must be a number of bytes for the largest batch, got {budget!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a batch size, 1 or more, got {most!r}")

    def measure(example_inputs: Any) -> Options:
        step = measured_step(model, example_inputs, gamma=ratio, streams=streams, arithmetic=arithmetic, loss=loss)
        return step.options

    def fits(batch: int) -> bool:
        try:
            step_plan(model, make_example(batch), limit, gamma=ratio, streams=streams, arithmetic=arithmetic, loss=loss)
        except (ConversionError, torch.OutOfMemoryError):
            return False
        return True

    predicted = largest_planned(make_example, measure, limit, most=most)
    found = largest_tried(predicted, fits, most)
    if not found:
        raise ConversionError(
            f"no batch fits a budget of {format_bytes(limit)}: {predicted} was predicted to, and took more when it was "
            "tried, and so did those below. Give more bytes"
        )
    return found


def conversion_plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction,
    streams: Sequence[str] | None,
    arithmetic: str,
    backward: str,
    others: str,
) -> Plan:
    """What a conversion with these options does; `plan` says what they mean."""
    found = discover(model, example_inputs, streams=streams)
    if not found.streams:
        raise ConversionError(_nothing_found(model, found.rejections))
    return Plan(found, exact_gamma(gamma), backward, arithmetic, others)


def step_plan(
    model: nn.Module,
    example_inputs: Any,
    budget: int | str | None,
    *,
    gamma: float | Fraction,
    streams: Sequence[str] | None,
    arithmetic: str,
    backward: str = AUTO,
    others: str = "keep",
    spare: int = 0,
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
) -> TrainingPlan:
    """The choices that fit a budget, or the least and ``spare``; `plan` says what the options mean.

    Raises:
        ValueError: an option is given that the plan itself has to choose, or two that say how many bytes there are.
    """
    # Only who gives a budget waits for these.
    from momentumnet.planner.budget import LEAST, bytes_of
    from momentumnet.planner.build import device_of
    from momentumnet.planner.fit import measured_step
    from momentumnet.planner.trial import trial_of

    chosen = {"backward": backward != AUTO, "others": others != "keep"}
    if any(chosen.values()):
        given = ", ".join(name for name, is_given in chosen.items() if is_given)
        said = "a budget" if budget is not None else "bytes to spare"
        raise ValueError(f"with {said}, what is recomputed is chosen for each block and module; leave out {given}")
    if budget is None:
        budget = LEAST
    if spare and budget != LEAST:
        raise ValueError(
            f"spare={spare!r} is a budget of the least that there is and so many bytes, and budget={budget!r} another "
            "one; leave out one of them"
        )
    if example_inputs is None:
        raise ConversionError("a budget, and bytes to spare, need example_inputs: the step that is to be planned")
    limit, ratio = bytes_of(budget, device_of(model, example_inputs)), exact_gamma(gamma)
    step = measured_step(
        model, example_inputs, gamma=ratio, streams=streams, arithmetic=arithmetic, loss=loss, offload=offload
    )
    return step.plan(limit, spare=spare, trial=trial_of(model, example_inputs, loss))


def check_options(others: str, spare: int, backward: str) -> None:
    """These options have values that they take, and go together."""
    if others not in OTHERS:
        raise ValueError(f"others must be one of {', '.join(map(repr, OTHERS))}, got {others!r}")
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare must be a number of bytes, 0 or more, got {spare!r}")


def check_offload(offload: bool, *, is_planned: bool) -> None:
    """Offloading is one of the choices of a plan."""
    if not isinstance(offload, bool):
        raise ValueError(f"offload must be True or False, got {offload!r}")
    if offload and not is_planned:
        raise ValueError(
            "offload=True lets a plan move activations to host memory, and nothing is planned; give a budget, too, "
            "e.g. budget='4GiB'"
        )


def _nothing_found(model: nn.Module, rejections: Sequence[Any]) -> str:
    looked = "\n".join(
        f"  - {r.path or '(root)'} ({', '.join(r.blocks[:4])}{', ...' if len(r.blocks) > 4 else ''}): {r.reason}"
        for r in list(rejections)[:20]
    )
    return (
        f"no residual stream found in {type(model).__name__}. A stream is two or more sibling modules, each mapping a "
        "tensor to the same shape with a skip connection inside, the output of one being the input of the next. "
        + (f"Looked at:\n{looked}" if looked else "No two sibling modules pass a tensor of one shape along.")
    )
