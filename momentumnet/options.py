"""Checks of arguments: what several functions demand of a switch, a number, a word, a generator or a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import nn

from momentumnet.listing import listed
from momentumnet.parameter_parts import is_dtensor, is_flattened


def true_or_false(**options: bool) -> None:
    """Raises ValueError unless each option is True or False, also of NumPy: text, as "no", would count as true."""
    for name, value in options.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def check_generator(generator: torch.Generator | None) -> None:
    """Raises ValueError for a seed, or anything else, in the place of a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator must be a torch.Generator or None, got {generator!r}; make one of a seed by "
            "torch.Generator().manual_seed(seed)"
        )


def check_is_whole(model: nn.Module) -> None:
    """Raises ValueError as `check_has_values` does, and for parameters in shards, as FSDP2 makes them."""
    check_has_values(model)
    sharded = [name for name, parameter in model.named_parameters() if is_dtensor(parameter)]
    if sharded:
        raise ValueError(_in_parts(model, sharded))


def _in_parts(model: nn.Module, names: Sequence[str]) -> str:
    return (
        f"of parameters of {type(model).__name__} each process holds a part: {listed(names)}; do this before the model "
        "is sharded (fully_shard, FullyShardedDataParallel)"
    )


def check_has_values(model: nn.Module) -> None:
    """Raises ValueError for a model with parameters on the meta device, which are shapes alone, or in parts of FSDP1's.

    Those of FSDP2 know that they are parts, so that one may draw them anew or compare them.
    """
    parts = [name for name, parameter in model.named_parameters() if is_flattened(parameter)]
    if parts:
        raise ValueError(_in_parts(model, parts))
    hollow = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if hollow:
        raise ValueError(
            f"parameters of {type(model).__name__} are on the meta device and have no values: {listed(hollow)}; give "
            "them memory first (model.to_empty(device=...)), and load or draw their values"
        )


def check_names(name: str, value: Collection[str]) -> None:
    """Raises ValueError for anything but several names; a text is a collection of letters."""
    if isinstance(value, str) or not isinstance(value, Collection):
        raise ValueError(f"{name} must be a collection of names, got {value!r}")


def positive(name: str, value: float) -> None:
    """Raises ValueError unless the value is a finite number above zero."""
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def is_finite(value: object) -> bool:
    """Whether the value is a finite number, of any kind that Python takes for one; True and False are none."""
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):  # text; an array or a tensor of several; 10**400
        return False


def one_of(name: str, value: str, known: Collection[str]) -> None:
    """Raises ValueError unless the value is one of those that are known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def whole(name: str, value: int, *, least: int = 1) -> None:
    """Raises ValueError unless the value is a whole number, not below the least."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def is_whole(value: object) -> bool:
    """Whether the value is a whole number, of Python or of NumPy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)
