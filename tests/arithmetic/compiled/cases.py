"""Hypothesis cases for the operators: states with every edge of the word, branches with NaN, Inf and ties."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic import fixed_point as fp
from tests.arithmetic.compiled.reference import Case
from tests.arithmetic.strategies import dtypes, gammas

# Around the widths of vectors and of the kernels' tiles.
sizes = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1023, 1024, 1025, 2077])
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e30, -1e30, 65504.0, 65520.0, -65520.0, 6e-8, 2.0**-14]


def any_integers(word: fp.Word, size: int, generator: torch.Generator) -> Tensor:
    """Integers of every magnitude, the word's edges among them."""
    low, high = -(1 << (word.bits - 1)), (1 << (word.bits - 1)) - 1
    whole = torch.randint(low, high, (size,), generator=generator, dtype=torch.int64)
    values = whole >> torch.randint(0, word.bits, (size,), generator=generator)
    edges = torch.tensor([low, low + 1, -word.limit - 1, -word.limit, -1, 0, 1, word.limit, high - 1, high])
    chosen = torch.randint(0, 4 * len(edges), (size,), generator=generator)
    return torch.where(chosen < len(edges), edges[chosen.clamp(max=len(edges) - 1)], values).to(word.dtype)


def any_branch(dtype: torch.dtype, size: int, scale: float, generator: torch.Generator) -> Tensor:
    """Values of every magnitude around ``scale``, half of them ties of the rounding, and special ones."""
    values = torch.randn(size, generator=generator, dtype=torch.float64) * scale
    values = values * 2.0 ** torch.randint(-30, 6, (size,), generator=generator)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    chosen = torch.randint(0, 6 * len(special), (size,), generator=generator)
    return torch.where(chosen < len(special), special[chosen.clamp(max=len(special) - 1)], values).to(dtype)


@st.composite
def cases(draw: st.DrawFn, size: int | None = None) -> Case:
    size = draw(sizes) if size is None else size
    word, store_bits = draw(st.sampled_from([(fp.INT64, 64), (fp.INT32, 32), (fp.INT32, 16), (fp.INT24, 16)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    gamma = draw(gammas.filter(fp.has_short_store) if store_bits == 16 else gammas)
    digits = fp.store_schedule(gamma, word)[draw(st.one_of(st.integers(0, 40), st.integers(0, 400)))]
    weight, exponent = draw(st.floats(1 / 128, 1)), draw(st.integers(word.min_exponent, word.bits - 4))
    y = any_branch(draw(dtypes), size, 2.0 ** (word.bits - 8 - exponent), generator)
    if draw(st.booleans()):
        y = torch.stack([y, -y], dim=-1)[..., 0]  # gaps in memory
    # A store in its bounds, as forward leaves it, or anything, as a branch that went wrong in backward leaves it.
    s = any_integers(word, size, generator)
    s = s & 65535 if store_bits == 16 else s
    if draw(st.booleans()):
        s = s.remainder(digits.previous_bound).to(word.dtype)
    return Case(
        word,
        store_bits,
        any_integers(word, size, generator),
        any_integers(word, size, generator),
        s,
        y,
        digits,
        math.ldexp(weight, exponent),
        exponent,
        draw(st.one_of(st.none(), dtypes)),
        draw(dtypes),
        torch.randint(0, 256, (size,), generator=generator).to(torch.uint8) if digits.spills else None,
    )
