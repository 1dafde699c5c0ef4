"""Batches of data: pairs of inputs and target, batches in a cycle, and how a model is called on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

Batch = tuple[Any, Any]
LossFunction = Callable[[Any, Any], Tensor]


def endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The ``(inputs, target)`` pairs over and over again, each round by iterating anew (a DataLoader shuffles anew).

    Raises:
        ValueError: there is no batch, or an iterator that can be gone through only once has come to its end.
        TypeError: a batch is no pair.

    Example:
        >>> import itertools
        >>> [target for _, target in itertools.islice(endless([("a", 0), ("b", 1)]), 5)]
        [0, 1, 0, 1, 0]
    """
    rounds = 0
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield pair(batch)
        if empty:
            raise ValueError(
                "batches is empty; pass at least one (inputs, target) pair"
                if not rounds
                else "batches came to its end and cannot be gone through again; pass a list or a DataLoader"
            )
        rounds += 1


def pair(batch: Any) -> Batch:
    """The batch as ``(inputs, target)``.

    Raises:
        TypeError: it is no pair.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"a batch must be a pair (inputs, target), got {_described(batch)}")
    return batch[0], batch[1]


def outputs_of(model: Callable[..., Any], inputs: Any) -> Any:
    """``model`` called on the inputs of a batch: a tensor, a tuple or list (positional), or a mapping (keywords)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _described(batch: object) -> str:
    size = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    return f"{type(batch).__name__}{size}"
