"""A batch that shares half of its samples with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree  # the one walker that knows every registered container

from momentumnet.loss.batches import Batch
from momentumnet.loss.samples import has_samples, samples, sliced


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


def _joined(kept: int, new: int) -> Callable[[Any, Any], Any]:
    def join(a: Any, b: Any) -> Any:
        return torch.cat([a, b]) if has_samples(a, kept) and has_samples(b, new) else a

    return join
