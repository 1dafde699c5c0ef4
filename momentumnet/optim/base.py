"""The optimizer that a two-step optimizer drives: made or taken over, and checked to be usable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def base_optimizer_of(
    params: Any,
    base_optimizer: Callable[..., Optimizer] | Optimizer,
    own_options: Mapping[str, Any],
    base_options: Mapping[str, Any],
) -> Optimizer:
    """The base optimizer, with the own options of the optimizer around it in each of its parameter groups.

    Raises:
        ValueError: It is no optimizer, its step needs a closure, or it has an option of the same name; or it exists
            already and ``params`` are not the parameters that it was made for, or there are options for it.
    """
    if isinstance(base_optimizer, Optimizer):
        base = base_optimizer
        if base_options:
            raise ValueError(
                f"options {sorted(base_options)} for a base optimizer that exists already; "
                "pass its class, or set them where it is made"
            )
        _take_groups(base, list(params), own_options)
    elif callable(base_optimizer):
        base = base_optimizer(params, **base_options)
    else:
        raise ValueError(f"base_optimizer must be an optimizer or its class, got {base_optimizer!r}")
    _check_usable(base, own_options)
    for group in base.param_groups:
        for name, value in own_options.items():
            group.setdefault(name, value)
    return base


def _check_usable(base: Any, own_options: Mapping[str, Any]) -> None:
    if not isinstance(base, Optimizer):
        raise ValueError(f"base_optimizer must make a torch.optim.Optimizer, got {type(base).__name__}")
    if getattr(base, "evaluates_twice", False):
        raise ValueError(f"{type(base).__name__} cannot be the base of another optimizer that evaluates twice")
    clash = sorted(own_options.keys() & base.defaults.keys())
    if clash:
        raise ValueError(f"{type(base).__name__} has options {clash} of its own; choose another base optimizer")
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(base).__name__} evaluates a closure itself and cannot be the base; use e.g. SGD or Adam"
        )


def _take_groups(base: Optimizer, given: list[Any], own_options: Mapping[str, Any]) -> None:
    """Checks that the parameters are the optimizer's, and takes over own options from groups given as dictionaries."""
    grouped = bool(given) and isinstance(given[0], dict)
    groups = given if grouped else [{"params": given}]
    expected = [_ids(group["params"]) for group in base.param_groups]
    got = [_ids(group["params"]) for group in groups]
    same = got == expected if grouped else got == [list(chain.from_iterable(expected))]
    if not same:
        raise ValueError(
            f"params are not those of the base optimizer (got {sum(map(len, got))} in {len(got)} groups, it has "
            f"{sum(map(len, expected))} in {len(expected)}); make it with the same parameters in the same order"
        )
    for target, group in zip(base.param_groups, groups if grouped else [{}] * len(expected), strict=True):
        unknown = sorted(group.keys() - own_options.keys() - {"params"})
        if unknown:
            raise ValueError(f"group options {unknown} belong to the base optimizer; set them where it is made")
        target.update({name: group.get(name, value) for name, value in own_options.items()})


def _ids(params: Tensor | Iterable[Any]) -> list[int]:
    if isinstance(params, Tensor):
        return [id(params)]
    return [id(entry[1] if isinstance(entry, tuple) else entry) for entry in params]
