"""Batches by their samples: how many there are, and parts of a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.loss.batches import Batch


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
    part = pytree.tree_map(lambda leaf: leaf[chosen] if has_samples(leaf, count) else leaf, (inputs, target))
    return part[0], part[1]


def chunks(batch: Batch, size: int) -> list[tuple[Batch, float]]:
    """The batch in as few parts of at most ``size`` samples as there can be, each with its share of the samples.

    Their sizes differ by one at most: a last part of a single sample would be no batch for batch normalisation.
    """
    count = samples(batch)
    parts = -(-count // size)
    ends = [count * part // parts for part in range(parts + 1)]
    return [(sliced(batch, slice(a, b)), (b - a) / count) for a, b in pairwise(ends)]


def has_samples(leaf: Any, count: int) -> bool:
    """Whether it is a tensor whose first dimension is that of the samples."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count
