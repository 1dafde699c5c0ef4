"""Learning rates of the first steps: warmed up, or held constant, before the schedule proper begins.

Also the two baselines of Zhu et al. (GradInit, NeurIPS 2021, table 1) that train one epoch more than the others, in
place of the initialisation that they do without: "+1 epoch (Const. LR)" is `constant`, "+1 epoch (Warmup)" is `warmup`,
both with the steps of an epoch and with the schedule of the other epochs as ``after``.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LinearLR, LRScheduler, SequentialLR

from momentumnet.options import is_finite, whole


def warmup(
    optimizer: Optimizer, steps: int, *, start: float | None = None, after: LRScheduler | None = None
) -> LRScheduler:
    """A scheduler that raises the learning rate linearly to its full value, which it then keeps or hands on.

    In step t = 0, 1, ... of the optimizer, the learning rate of each parameter group is its initial one times::

        start + (1 - start) t / steps    for t < steps
        1, or what ``after`` makes of its own step t - steps    from then on

    Args:
        optimizer: Its learning rates are the full ones.
        steps: Number of optimizer steps below the full learning rate; call ``scheduler.step()`` after each step.
        start: Factor in the first step, above 0 and at most 1; by default 1 / (steps + 1), so that the factors are
            1, 2, ..., steps, steps + 1 parts of steps + 1.
        after: Scheduler of the same optimizer, newly made, that takes over after ``steps`` steps as if it began then.

    Returns:
        A scheduler of ``torch.optim.lr_scheduler``; ``state_dict`` and ``load_state_dict`` resume it and ``after``.

    Raises:
        ValueError: ``steps`` is no whole number of at least 1, ``start`` not in (0, 1], or ``after`` belongs to another
            optimizer or has been stepped already.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = warmup(optimizer, 3)
        >>> rates = []
        >>> for _ in range(5):
        ...     rates.append(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    whole("steps", steps)
    factor = 1 / (steps + 1) if start is None else start
    _check_factor("start", factor)
    _check_after(optimizer, after)
    return _followed(optimizer, LinearLR(optimizer, factor, total_iters=steps), steps, after)


def constant(optimizer: Optimizer, steps: int, *, factor: float = 1.0, after: LRScheduler | None = None) -> LRScheduler:
    """A scheduler that holds the learning rate at ``factor`` times its full value, and then hands it on.

    In step t = 0, 1, ... of the optimizer, the learning rate of each parameter group is its initial one times::

        factor    for t < steps
        1, or what ``after`` makes of its own step t - steps    from then on

    Args:
        optimizer: Its learning rates are the full ones.
        steps: Number of optimizer steps at the constant rate.
        factor: Above 0 and at most 1.
        after: As for `warmup`.

    Returns:
        A scheduler of ``torch.optim.lr_scheduler``.

    Raises:
        ValueError: As `warmup`.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = constant(optimizer, 2, after=CosineAnnealingLR(optimizer, 2))
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [1.0, 1.0, 1.0, 0.5]
    """
    whole("steps", steps)
    _check_factor("factor", factor)
    _check_after(optimizer, after)
    return _followed(optimizer, ConstantLR(optimizer, factor, total_iters=steps), steps, after)


def _check_factor(name: str, factor: float) -> None:
    if not (is_finite(factor) and 0 < factor <= 1):
        raise ValueError(f"{name} must be above 0 and at most 1, got {factor!r}")


def _check_after(optimizer: Optimizer, after: LRScheduler | None) -> None:
    if after is None:
        return
    if not isinstance(after, LRScheduler):
        raise ValueError(f"after must be a scheduler of torch.optim.lr_scheduler, or None, got {after!r}")
    if after.optimizer is not optimizer:
        raise ValueError("after must be a scheduler of the same optimizer")
    if after.last_epoch != 0:
        raise ValueError(f"after must be newly made, but it has been stepped {after.last_epoch} times")


def _followed(optimizer: Optimizer, first: LRScheduler, steps: int, after: LRScheduler | None) -> LRScheduler:
    return first if after is None else SequentialLR(optimizer, [first, after], milestones=[steps])
