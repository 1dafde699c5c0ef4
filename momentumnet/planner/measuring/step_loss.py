"""The loss of a step that is planned: the caller's, the model's own, or a sum; and that it can be differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, is_grad_enabled, nn, stack

from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.nested import tensors_inside

Loss = Callable[[Any], Tensor]
_ASKED = "loss must be a function of the model's output that gives a tensor of one element, with its gradient"


def check_loss(loss: Loss | None) -> None:
    """It can be called with the model's output alone.

    Raises:
        ValueError: it is something else, or wants targets beside it.
    """
    if loss is None:
        return
    if not callable(loss):
        raise ValueError(f"{_ASKED}; got {loss!r}")
    try:
        found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except ValueError:  # some functions in C tell nobody what they take
        return
    try:
        found.bind(None)
    except TypeError as error:
        raise ValueError(
            f"{_ASKED}; {loss!r} cannot be called with that alone ({error}). Give it what else it takes: "
            "loss=lambda output: criterion(output, targets)"
        ) from error


def total_of(output: Any, loss: Loss | None) -> Tensor:
    """The number that the step's backward begins from.

    Raises:
        ConversionError: the output holds nothing that could be differentiated, so that there is no step to plan.
        ValueError: ``loss`` gives something else.
    """
    total = loss_of(output) if loss is None else loss(output)
    if not isinstance(total, Tensor) or total.numel() != 1:
        found = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else repr(total)
        raise ValueError(f"{_ASKED}; got {found} from it")
    if total.requires_grad or not is_grad_enabled():  # a run that measures what is needed without gradients
        return total
    if loss is not None and any(leaf.requires_grad for leaf in tensors_inside(output)):
        raise ValueError(f"{_ASKED}; what it gives has none (detach, no_grad, or an argmax on the way?)")
    raise ConversionError(
        "no step can be planned: what the model returns has no gradient. Its forward runs under no_grad or detaches "
        "its result, or none of its parameters takes a gradient"
    )


def loss_of(output: Any) -> Tensor:
    """A loss of any output: its own (the sum of one for each sample), where it has one, else the sum of all in it."""
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own if own.numel() == 1 else own.sum()
    found = [leaf.sum() for leaf in floats_of(output)]
    if not found:
        raise ConversionError(
            f"no step can be planned: the model returns no floating-point tensor that could be differentiated, but a "
            f"{type(output).__name__}"
        )
    return stack(found).sum()


def floats_of(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns."""
    return (leaf for leaf in tensors_inside(output) if leaf.is_floating_point())
