"""Copies of objects of Python that hold state, with all that they hold.

A block is handed such an object and writes into it, or reads what another one wrote; so a recompute has to be handed
the object as the first run found it. Copies take no tensor's memory: they hold the same tensors, or aliases of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from momentumnet.recompute.values.left_values import is_generator
from momentumnet.recompute.values.objects import SIMPLE, Copying, contents_of, copying_of, is_array, put, tuple_like

# What reaches more objects than this is no state of a network but a part of the program around it.
_LARGEST = 20_000
_SMALL = 4096  # bytes


def copied(
    value: Any,
    tensor: Callable[[Tensor], Any] = lambda found: found,
    arrays: list[tuple[Any, Any]] | None = None,
    generators: list[Any] | None = None,
) -> Any:
    """A copy of an object or a container, and of the objects and containers in it; their tensors are not copied.

    Modules, functions and the machinery of Python and torch stay themselves, and so does what refuses to be copied or
    holds more than the state of a network would.

    Args:
        value: what to copy.
        tensor: gives what stands in the copy for a tensor; the tensor itself by default.
        arrays: receives NumPy's arrays, which are copied with their values, and their copies.
        generators: receives random generators, which stay themselves.

    Example:
        >>> cache = {"keys": [torch.ones(2)]}
        >>> again = copied(cache)
        >>> again["keys"] is cache["keys"], again["keys"][0] is cache["keys"][0]
        (False, True)
    """
    try:
        return _Copies(tensor, arrays, generators).of(value)
    except (_TooLargeError, RecursionError):
        return value


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor is a counter or the like: objects change those in place, and they cost nothing to clone."""
    return not tensor.requires_grad and tensor.layout is torch.strided and tensor.nbytes <= _SMALL


def with_small_ones_cloned(tensor: Tensor) -> Tensor:
    """What stands for a tensor in a copy that is going to be written to."""
    return tensor.clone() if is_small(tensor) else tensor


def _stays_itself(kind: type) -> bool:
    """Whether it is a generator. One of a class derived from Python's may hold more (a count), and is copied."""
    return is_generator(kind) and (kind is random.Random or not issubclass(kind, random.Random))


class _TooLargeError(Exception):
    """A walk has met more than the state of a network. It ends the walk, and no caller sees it."""


class _Copies:
    """One walk, in which each object is copied once."""

    def __init__(
        self, tensor: Callable[[Tensor], Any], arrays: list[tuple[Any, Any]] | None, generators: list[Any] | None
    ) -> None:
        self._tensor, self._arrays, self._generators = tensor, arrays, generators
        self._made: dict[int, Any] = {}
        self._originals: list[Any] = []  # an id means something only while its object lives

    def of(self, value: Any) -> Any:
        if type(value) in SIMPLE:
            return value
        if _stays_itself(type(value)):
            if self._generators is not None:
                self._generators.append(value)
            return value
        is_tensor = isinstance(value, Tensor)
        copying = Copying.NONE if is_tensor else copying_of(type(value))
        if copying is Copying.NONE and not is_tensor:
            return value
        if id(value) not in self._made:
            if len(self._originals) >= _LARGEST:
                raise _TooLargeError
            self._originals.append(value)
            if is_tensor:
                self._made[id(value)] = self._tensor(value)
            elif copying is Copying.ATTRIBUTES:
                self._made[id(value)] = self._with_attributes(value)
            else:
                self._made[id(value)] = self._as_its_class_does(value)
        return self._made[id(value)]

    def _with_attributes(self, value: Any) -> Any:
        made = self._made[id(value)] = object.__new__(type(value))  # known before what it holds, which may hold it
        attributes = vars(made)
        for name, item in vars(value).items():
            attributes[name] = self.of(item)
        return made

    def _as_its_class_does(self, value: Any) -> Any:
        if isinstance(value, tuple):
            items = [self.of(item) for item in value]
            return tuple_like(value, items)
        try:
            made = copy.copy(value)
        except RecursionError:  # it is not the object that refuses
            raise
        except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, copy.Error):
            return value
        if made is not value:
            self._made[id(value)] = self._made[id(made)] = made
            if self._arrays is not None and is_array(type(value)):
                self._arrays.append((value, made))
            # What the copy holds, not what the original does: its class may have copied parts that know their owner.
            put(made, contents_of(made).replaced(self.of))
        return made
