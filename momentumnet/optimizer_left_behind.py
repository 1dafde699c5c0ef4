"""A hint: an optimizer that is older than the converted copy of a model holds the original, and moves nothing."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from momentumnet.errors import MomentumNetWarning

# The model that each converted copy was made from, until one of their optimizers has told which of them learns.
_originals: WeakKeyDictionary[nn.Module, ref[nn.Module]] = WeakKeyDictionary()
_hooks: list[Any] = []


def watch(original: nn.Module, converted: nn.Module) -> None:
    """Warn once, at an optimizer's step, if it holds parameters of ``original`` while ``converted`` gets the gradients.

    Args:
        original: the model that was copied.
        converted: the converted copy.
    """
    _originals[converted] = ref(original)
    if not _hooks:  # one for all models, which looks at nothing once they have been told apart
        _hooks.append(register_optimizer_step_pre_hook(_look))


@torch.compiler.disable
def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _originals:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for converted, source in list(_originals.items()):
        original = source()
        learning = any(id(parameter) in held for parameter in converted.parameters())
        if original is None or learning:
            del _originals[converted]
            continue
        left = [parameter for parameter in original.parameters() if id(parameter) in held]
        gets_gradients = any(parameter.grad is not None for parameter in converted.parameters())
        if left and gets_gradients and all(parameter.grad is None for parameter in left):
            del _originals[converted]
            warnings.warn(
                f"this {type(optimizer).__name__} holds parameters of the {type(original).__name__} that convert made "
                "a copy of, which have no gradients, so it moves nothing; the converted copy has them. Make the "
                "optimizer after convert, or convert with inplace=True",
                MomentumNetWarning,
                stacklevel=4,
            )
