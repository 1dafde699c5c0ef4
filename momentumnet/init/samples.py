"""Batches by their samples: parts of a batch, and a batch that shares half of its samples with another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.init.batches import Batch


def samples(batch: Batch) -> int:
    """The number of samples: the size of the first tensor's first dimension.

    Raises:
        ValueError: the batch holds no tensor with a dimension.
    """
    for leaf in pytree.tree_leaves(tuple(batch)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise ValueError("the batch holds no tensor with a first dimension, so it cannot be split into samples")


def sliced(batch: Batch, chosen: slice) -> Batch:
    """Those samples of the batch. Tensors of another first dimension, and what is no tensor, stay whole."""
    count = samples(batch)
    inputs, target = batch
    part = pytree.tree_map(lambda leaf: leaf[chosen] if _has_samples(leaf, count) else leaf, (inputs, target))
    return part[0], part[1]


def chunks(batch: Batch, size: int) -> list[tuple[Batch, float]]:
    """The batch in as few parts of at most ``size`` samples as there can be, each with its share of the samples.

    Their sizes differ by one at most: a last part of a single sample would be no batch for batch normalisation.
    """
    count = samples(batch)
    parts = -(-count // size)
    ends = [count * part // parts for part in range(parts + 1)]
    return [(sliced(batch, slice(a, b)), (b - a) / count) for a, b in pairwise(ends)]


def overlapping(first: Batch, fresh: Batch) -> Batch:
    """As many samples as the first batch has (or fewer): the first half of it, and as many of the fresh one as lack.

    Raises:
        ValueError: the two differ in structure, or in a shape beyond the first dimension.
    """
    count = samples(first)
    kept, new = sliced(first, slice(count // 2)), sliced(fresh, slice(count - count // 2))
    join = _joined(count // 2, samples(new))
    try:
        inputs, target = pytree.tree_map(join, tuple(kept), tuple(new))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "two batches cannot be joined, which GradInit's second batch needs (half of its samples come from the "
            f"first one): {error}. Pass batches of one structure, with the samples in dimension 0 and other dimensions "
            "of equal size (pad sequences to one length)"
        ) from error
    return inputs, target


def _has_samples(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count


def _joined(kept: int, new: int) -> Callable[[Any, Any], Any]:
    def join(a: Any, b: Any) -> Any:
        return torch.cat([a, b]) if _has_samples(a, kept) and _has_samples(b, new) else a

    return join
