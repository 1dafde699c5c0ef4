"""A hint: an optimizer that is older than the converted copy of a model holds the original, and moves nothing."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from momentumnet.errors import MomentumNetWarning


class _Original(NamedTuple):
    """What was copied: its class, and the parameters that learn. An optimizer keeps these alive, not the model."""

    kind: str
    parameters: list[ref[nn.Parameter]]


# What each converted copy was made from, until an optimizer has told which of them learns.
_originals: WeakKeyDictionary[nn.Module, _Original] = WeakKeyDictionary()
_hooks: list[Any] = []


def watch(original: nn.Module, converted: nn.Module) -> None:
    """Warn once, at an optimizer's step, if it holds parameters of ``original`` while ``converted`` gets the gradients.

    Args:
        original: the model that was copied.
        converted: the converted copy.
    """
    learning = [ref(parameter) for parameter in original.parameters() if parameter.requires_grad]
    _originals[converted] = _Original(type(original).__name__, learning)
    if not _hooks:  # one for all models; behind the step, as a closure may compute the gradients in it
        _hooks.append(register_optimizer_step_post_hook(_look))


@torch.compiler.disable
def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _originals:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for converted, original in list(_originals.items()):
        alive = [parameter for parameter in (reference() for reference in original.parameters) if parameter is not None]
        if not alive or any(id(parameter) in held for parameter in converted.parameters()):
            del _originals[converted]
            continue
        left = [parameter for parameter in alive if id(parameter) in held]
        gets_gradients = any(parameter.grad is not None for parameter in converted.parameters())
        if left and gets_gradients and all(parameter.grad is None for parameter in left):
            del _originals[converted]
            warnings.warn(
                f"this {type(optimizer).__name__} holds parameters of the {original.kind} that convert made a copy "
                "of, which have no gradients, so it does not move them; the converted copy has them. Make the "
                "optimizer after convert, or convert with inplace=True",
                MomentumNetWarning,
                stacklevel=4,
            )
