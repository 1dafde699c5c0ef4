"""Functions of the user's own, named as ``module:function``, and packages that not everybody has."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn

from momentumnet.command_errors import MachineError, UsageError
from momentumnet.streams.blocks.nested import tensors_in

SHOWN = 200  # letters of an error's message


def model_of(text: str) -> nn.Module:
    """The network that a function returns.

    Args:
        text: ``module:function``; the module is looked for in the current folder too.

    Raises:
        UsageError: There is no such module or function, it raises, or returns something else.
    """
    made = _returned_by(text)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{text} returned {_kind(made)}; it has to return an nn.Module")
    return made


def inputs_of(text: str) -> Any:
    """The example inputs that a function returns, as `momentumnet.convert` takes them.

    Args:
        text: ``module:function``, as for `model_of`.

    Raises:
        UsageError: As for `model_of`.
    """
    made = _returned_by(text)
    if next(tensors_in(made), None) is None:
        raise UsageError(
            f"--input {text} returned {_kind(made)}; it has to return a tensor, a tuple of positional arguments, or a "
            "dict of keyword arguments"
        )
    return made


def package(name: str, *, extra: str, asked: str) -> Any:
    """A package that not everybody has.

    Args:
        name: Of the package.
        extra: The extra of momentumnet that brings it.
        asked: What needs it.

    Raises:
        MachineError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MachineError(
            f'{asked} needs {name}, which is not installed: pip install "momentumnet[{extra}]"'
        ) from error


def reason(error: BaseException) -> str:
    """An error's kind and message, in one line of moderate length."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", SHOWN, placeholder=" ...")


def _returned_by(text: str) -> Any:
    module, _, name = text.partition(":")
    function = _function(module, name)
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{text} raised {reason(error)} (it is called without arguments)") from error


def _function(module: str, name: str) -> Callable[[], Any]:
    here = os.getcwd()
    if here not in sys.path:  # a program that is installed does not look into the folder that it is called from
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UsageError(f"module {module} cannot be imported: {reason(error)}") from error
        raise UsageError(f"there is no module {module} in {here}, nor among the installed packages") from error
    except Exception as error:
        raise UsageError(f"module {module} cannot be imported: {reason(error)}") from error
    function = getattr(found, name, None)
    if not callable(function):
        close = difflib.get_close_matches(name, [key for key in vars(found) if callable(vars(found)[key])], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"module {module} has no function {name!r}{hint}")
    return function


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
