"""Fields that integers are packed in, and integers at their edges."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic.packing import BLOCK, Field

fields = st.builds(Field, st.integers(1, 32), st.booleans())
# Around the ends of columns and of blocks.
sizes = st.one_of(st.integers(0, 70), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 31, 3 * BLOCK + 33]))


def limits(field: Field) -> tuple[int, int]:
    """The smallest and the largest integer of a field; of int32 at most, which has no unsigned 32 bits."""
    bits = field.width - field.signed
    return (-(1 << bits) if field.signed else 0), (1 << min(bits, 31)) - 1


def any_values(field: Field, size: int, seed: int) -> Tensor:
    """Integers of every magnitude, the field's ends among them."""
    low, high = limits(field)
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(low, high + 1, (size,), generator=generator)
    value >>= torch.randint(0, field.width + 1, (size,), generator=generator)
    ends = torch.randint(0, 8, (size,), generator=generator)
    return torch.where(ends == 0, low, torch.where(ends == 1, high, value)).to(torch.int32)
