"""The batch that shares half of its samples with another."""

from __future__ import annotations

import pytest
import torch

from momentumnet.init.overlap import overlapping


def test_half_and_half() -> None:
    first, fresh = (torch.arange(5), torch.arange(5) + 50), (torch.arange(10, 15), torch.arange(60, 65))
    inputs, target = overlapping(first, fresh)
    assert inputs.tolist() == [0, 1, 10, 11, 12]
    assert target.tolist() == [50, 51, 60, 61, 62]


def test_one_sample() -> None:
    inputs, _ = overlapping((torch.tensor([1]), torch.tensor([0])), (torch.tensor([2]), torch.tensor([0])))
    assert inputs.tolist() == [2]


def test_a_last_batch_that_is_smaller() -> None:
    inputs, _ = overlapping((torch.arange(8), torch.arange(8)), (torch.tensor([20]), torch.tensor([20])))
    assert inputs.tolist() == [0, 1, 2, 3, 20]


def test_structures() -> None:
    mask = torch.zeros(7, 7)
    first = ({"a": torch.zeros(4, 2), "mask": mask, "mode": "sum"}, (torch.zeros(4), torch.zeros(4, 3)))
    fresh = ({"a": torch.ones(4, 2), "mask": mask, "mode": "sum"}, (torch.ones(4), torch.ones(4, 3)))
    inputs, (labels, boxes) = overlapping(first, fresh)
    assert inputs["a"][:, 0].tolist() == labels.tolist() == boxes[:, 2].tolist() == [0, 0, 1, 1]
    assert inputs["mask"] is mask
    assert inputs["mode"] == "sum"


def test_sequences_of_other_length() -> None:
    with pytest.raises(ValueError, match=r"cannot be joined.*pad sequences to one length"):
        overlapping((torch.zeros(4, 2), torch.zeros(4)), (torch.zeros(4, 3), torch.zeros(4)))
