"""The largest batch of which a training step fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from momentumnet.core.settings import ARITHMETICS
from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.options import one_of
from momentumnet.planner.budget import ANEW
from momentumnet.planning import step_plan
from momentumnet.planning_options import check_gradients, check_offload, gammas_within_budget

if TYPE_CHECKING:
    from momentumnet.planner.options import Options


def largest_batch(
    model: nn.Module,
    make_example: Callable[[int], Any],
    budget: int | str,
    *,
    gamma: float | Fraction | None = None,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    loss: Callable[[Any], Tensor] | None = None,
    offload: bool = False,
    gradients: str = ANEW,
    most: int = 1 << 16,
) -> int:
    """The largest batch of which a training step fits a budget: for it `plan` finds choices, for one more it does not.

    The step is measured at a batch of two, the peak predicted for others, and the answer tried out: that it fits, and
    that one more does not. Some ten batches are measured as a rule, none of them much larger than the answer.

    Args:
        model: the network, which is left as it is.
        make_example: gives example inputs for a batch size, as `plan` takes them, on the device to train on.
        budget: see `plan`; not ``"least"``.
        gamma: see `plan`.
        streams: see `convert`.
        arithmetic: see `convert`.
        loss: see `plan`.
        offload: see `plan`.
        gradients: see `plan`.
        most: the largest batch to look at.

    Raises:
        ConversionError: a batch of one does not fit; says what `plan` says of a budget that is too small. Or
            ``offload`` is asked for on a device that computes in host memory.
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
    from momentumnet.planner.advice import DoesNotFitError
    from momentumnet.planner.batch import largest_planned, largest_tried
    from momentumnet.planner.budget import bytes_of
    from momentumnet.planner.build import device_of
    from momentumnet.planner.fit import measured_steps
    from momentumnet.planner.step_loss import check_loss

    check_loss(loss)
    limit, gammas = bytes_of(budget, device_of(model, ())), gammas_within_budget(gamma)
    if limit is None:
        raise ValueError(f"budget must be a number of bytes for the largest batch, got {budget!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a batch size, 1 or more, got {most!r}")

    one_of("arithmetic", arithmetic, ARITHMETICS)
    check_offload(offload, is_planned=True)
    check_gradients(gradients, is_planned=True)
    given: dict[str, Any] = {"streams": streams, "arithmetic": arithmetic, "loss": loss, "offload": offload}
    given["gradients"] = gradients

    def measure(example_inputs: Any) -> list[Options]:
        return [step.options for step in measured_steps(model, example_inputs, gammas=gammas, **given)]

    def fits(batch: int) -> bool:
        try:
            step_plan(model, make_example(batch), limit, gamma=gamma, **given)
        except (ConversionError, torch.OutOfMemoryError):
            return False
        return True

    try:
        predicted = largest_planned(make_example, measure, limit, most=most)
    except DoesNotFitError as error:
        if error.__cause__ is not None:  # a batch of one cannot even be measured
            raise
        step_plan(model, make_example(1), limit, gamma=gamma, **given)  # tried out, it may fit; or says what it took
        predicted = 1
    found = largest_tried(predicted, fits, most)
    if not found:
        raise ConversionError(
            f"no batch fits a budget of {format_bytes(limit)}: {predicted} was predicted to, and took more when it was "
            "tried, and so did those below. Give more bytes"
        )
    return found
