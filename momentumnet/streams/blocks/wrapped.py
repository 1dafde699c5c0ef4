"""What is no model to be traced: no module, or one that is prepared for several processes already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from momentumnet.errors import ConversionError

# By name, as some builds of torch have none of them.
_WRAPPERS = {
    "FSDPModule": "sharded by fully_shard",
    "FullyShardedDataParallel": "wrapped in FullyShardedDataParallel",
    "DistributedDataParallel": "wrapped in DistributedDataParallel",
}


def check_is_module(model: Any) -> None:
    """The model is one, and not its name, its class or the function that makes it.

    Raises:
        ConversionError: it is something else.
    """
    if isinstance(model, nn.Module):
        return
    called = f"; call {model.__name__}(...) to make one" if callable(model) and hasattr(model, "__name__") else ""
    raise ConversionError(f"model is of type {type(model).__name__}; expected an nn.Module{called}")


def check_can_be_traced(model: nn.Module) -> None:
    """A trace of the model leaves it as it was found.

    Raises:
        ConversionError: it is no module. Or the model or a module in it is wrapped or sharded: its state between
            forward and backward would be that of a pass whose backward never comes.
    """
    check_is_module(model)
    for path, module, found in _wrapped_in(model):
        raise ConversionError(
            f"{_place(path, module)} is {found} already, and cannot be traced then: convert first, and wrap or shard "
            "the converted model. (A description, like=, or streams named by hand without example inputs need no "
            "trace: with inplace=True they convert a sharded model, too.)"
        )


def check_can_be_copied(model: nn.Module) -> None:
    """PyTorch can make a deep copy of the model.

    Raises:
        ConversionError: it, or a module in it, is sharded.
    """
    for path, module, found in _wrapped_in(model):
        if found == _WRAPPERS["FSDPModule"]:
            raise ConversionError(
                f"{_place(path, module)} is {found} already, and PyTorch cannot copy it then; pass inplace=True"
            )


def _wrapped_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and in what it is wrapped."""
    for path, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                yield path, module, _WRAPPERS[kind.__name__]


def _place(path: str, module: nn.Module) -> str:
    return f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
