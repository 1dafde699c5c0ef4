"""The largest batch of which a training step fits a budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from momentumnet.conversion.planning import step_plan
from momentumnet.conversion.planning_options import check_gradients, check_offload, gammas_within_budget
from momentumnet.core.passes.settings import ARITHMETICS
from momentumnet.errors import ConversionError
from momentumnet.memory import format_bytes
from momentumnet.options import one_of
from momentumnet.out_of_memory import is_out_of_memory
from momentumnet.planner.machine.budget import ANEW, bytes_of

if TYPE_CHECKING:
    from momentumnet.planner.searching.options import Options

logger = logging.getLogger("momentumnet")


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
    # Only who gives a budget waits for these.
    from momentumnet.planner.batch import largest_tried
    from momentumnet.planner.measuring.build import device_of
    from momentumnet.planner.measuring.step_loss import check_loss

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

    _tell_of_eval_mode(model)
    steps = _Steps(model, make_example, limit, gamma, gammas, given)
    predicted = steps.predicted_largest(most)
    found = largest_tried(predicted, steps.fits, most)
    if not found:
        raise ConversionError(
            f"no batch fits a budget of {format_bytes(limit)}: {predicted} was predicted to, and took more when it was "
            "tried, and so did those below. Give more bytes"
        )
    return found


def _tell_of_eval_mode(model: nn.Module) -> None:
    if not model.training:
        logger.warning(
            "%s is in eval mode, and so are the steps that are measured; in training mode, where dropout keeps masks, "
            "they may take more. Call train() first, where it is trained so",
            type(model).__name__,
        )


@dataclass(frozen=True)
class _Steps:
    """Steps of a network at several batch sizes, within one budget.

    Attributes:
        limit: the budget in bytes.
        gamma: that was given.
        gammas: that may be planned.
        options: the other ones of a plan.
    """

    model: nn.Module
    make_example: Callable[[int], Any]
    limit: int
    gamma: float | Fraction | None
    gammas: Sequence[Fraction]
    options: Mapping[str, Any]

    def predicted_largest(self, most: int) -> int:
        """The largest batch, of up to ``most``, that is predicted to fit.

        Raises:
            ConversionError: a batch of one does not fit.
        """
        from momentumnet.planner.advice import DoesNotFitError
        from momentumnet.planner.batch import largest_planned

        try:
            return largest_planned(self.make_example, self._measured, self.limit, most=most)
        except DoesNotFitError as error:
            if error.__cause__ is not None:  # a batch of one cannot even be measured
                raise
            self._plan(1)  # tried out, it may fit; or says what it took
            return 1

    def fits(self, batch: int) -> bool:
        """Whether a plan for this batch fits, tried out."""
        from momentumnet.planner.advice import DoesNotFitError

        try:
            self._plan(batch)
        except DoesNotFitError:
            return False
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _measured(self, example_inputs: Any) -> list[Options]:
        from momentumnet.planner.fit import measured_steps

        found = measured_steps(self.model, example_inputs, gammas=self.gammas, **self.options)
        return [step.options for step in found]

    def _plan(self, batch: int) -> None:
        step_plan(self.model, self.make_example(batch), self.limit, gamma=self.gamma, **self.options)
