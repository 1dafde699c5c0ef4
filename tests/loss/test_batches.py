"""Batches in a cycle, and how a model is called on one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from momentumnet.loss.batches import endless, outputs_of


def test_batches_are_cycled() -> None:
    assert [target for _, target in itertools.islice(endless([(0, 1), [0, 2]]), 5)] == [1, 2, 1, 2, 1]


def test_no_batches() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        next(endless([]))


def test_an_iterator_that_ends() -> None:
    batches = endless(iter([(0, 1)]))
    next(batches)
    with pytest.raises(ValueError, match="pass a list or a DataLoader"):
        next(batches)


@pytest.mark.parametrize("batch", [torch.zeros(2), (1, 2, 3)])
def test_what_is_no_pair(batch: object) -> None:
    with pytest.raises(TypeError, match=r"pair \(inputs, target\), got"):
        next(endless([batch]))


def test_calls() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: float = 1.0) -> torch.Tensor:
            return a + b

    one = torch.ones(())
    assert [float(outputs_of(Sum(), inputs)) for inputs in (one, (one, 2.0), [one], {"a": one, "b": 4.0})] == [
        2,
        3,
        2,
        5,
    ]
