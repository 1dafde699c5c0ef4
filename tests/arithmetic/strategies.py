"""Hypothesis strategies for the exact arithmetic: fractions, words, integers at the edges, tensors of any layout."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from momentumnet.arithmetic.fixed_point import INT32, INT64, MAX_DENOMINATOR, Word

ALL_GAMMAS = [Fraction(n, d) for d in range(1, MAX_DENOMINATOR + 1) for n in range(1, d + 1) if math.gcd(n, d) == 1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

words = st.sampled_from([INT32, INT64])
dtypes = st.sampled_from(DTYPES)
gammas = st.one_of(
    st.sampled_from(
        [Fraction(1), Fraction(1, 2), Fraction(1, 8), Fraction(9, 10), Fraction(1, 128), Fraction(127, 128)]
    ),
    st.sampled_from(ALL_GAMMAS),
)


def exact(max_examples: int) -> settings:
    """The same examples in every run, however slow the machine is."""
    return settings(max_examples=max_examples, deadline=None, derandomize=True)


def integers(word: Word) -> st.SearchStrategy[int]:
    """Any integer of the word, its edges often."""
    low, high = -(1 << (word.bits - 1)), (1 << (word.bits - 1)) - 1
    edges = [low, low + 1, -word.limit, -word.limit - 1, -1, 0, 1, word.limit - 1, word.limit, high - 1, high]
    return st.one_of(st.sampled_from(edges), st.integers(-300, 300), st.integers(low, high))


def integer_lists(word: Word, size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(integers(word), min_size=size, max_size=size)


def wrap(value: int, word: Word) -> int:
    """The integer that the word holds for ``value``: two's complement."""
    return (value + (1 << (word.bits - 1))) % (1 << word.bits) - (1 << (word.bits - 1))


shapes = st.sampled_from([(), (1,), (7,), (2, 3), (0,), (3, 0, 2), (2, 3, 2, 5)])
layouts = st.sampled_from(["contiguous", "transposed", "sliced"])


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and values.dim() > 0:
        return torch.stack([values, -values], dim=-1)[..., 0]
    return values.contiguous()
