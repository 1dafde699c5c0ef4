"""The extragradient method: step with the gradient at the point where a plain gradient step would lead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from momentumnet.optim.displacement import Displacement, norms_of
from momentumnet.optim.two_step import TwoStepOptimizer


class Extragradient(TwoStepOptimizer):
    r"""Extragradient (Korpelevich 1976), the comparison for SAM: the same two passes, but it looks downhill.

    .. math::
        \tilde w = w - \mathrm{lr}\, g(w), \qquad w \leftarrow \mathrm{base}(w, g(\tilde w))

    The look-ahead is a plain gradient step with the group's learning rate, whatever the base optimizer is. With SGD
    without momentum this is Korpelevich's method. All else is as in `momentumnet.optim.SAM`: ``step(closure)``,
    ``first_step`` and ``second_step``, one extra copy of the parameters, statistics counted once. With a gradient
    scaler, unscale before ``first_step``: the look-ahead is as long as the gradient.

    Args:
        params: Parameters or groups, as for any optimizer.
        base_optimizer: A class (or function) that makes it from ``params``, or an optimizer of these ``params``.
        model: The network, wrapped as it is trained. Without it, norms are found as modules are called in the second
            pass, by a hook on all modules, for which `torch.compile` warns and compiles again. Needed for ``local``.
        same_random: In `step`, the second pass draws the same random numbers as the first (dropout masks).
        local: In `step`, each process of a `DistributedDataParallel` ``model`` looks ahead by its own gradient.
        base_options: Options for the base optimizer's class.

    Raises:
        ValueError: The base optimizer does not fit.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = Extragradient([weight], torch.optim.SGD, lr=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> weight.item()  # 1 - 0.5 (1 - 0.5)
        0.75
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer] | Optimizer,
        *,
        model: nn.Module | None = None,
        same_random: bool = False,
        local: bool = False,
        **base_options: Any,
    ) -> None:
        super().__init__(params, base_optimizer, {}, base_options, model=model, same_random=same_random, local=local)

    def _check_group(self, group: dict[str, Any]) -> None:
        if "lr" not in {**self.defaults, **group}:
            raise ValueError(f"the look-ahead needs a learning rate; {type(self.base_optimizer).__name__} has none")

    def _displace(self, moves: list[Displacement]) -> bool:
        finite = math.isfinite(self._total_norm(moves, lambda move: norms_of(move.gradients)))
        for move in moves if finite else []:
            rate = float(move.group["lr"])
            torch._foreach_add_(move.points, move.gradients, alpha=rate if move.group.get("maximize", False) else -rate)
        return finite
