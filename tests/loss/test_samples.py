"""Parts of batches."""

from __future__ import annotations

import pytest
import torch

from momentumnet.loss.samples import chunks, samples


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(7, 3, [2, 2, 3]), (4, 3, [2, 2]), (4, 9, [4]), (4, 2, [2, 2])]
)
def test_chunks(count: int, size: int, expected: list[int]) -> None:
    parts = chunks((torch.arange(count), torch.arange(count)), size)
    assert [len(inputs) for (inputs, _), _ in parts] == expected
    assert [share for _, share in parts] == pytest.approx([part / count for part in expected])
    assert torch.cat([inputs for (inputs, _), _ in parts]).tolist() == list(range(count))


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no tensor with a first dimension"):
        samples(("a", torch.tensor(1)))
