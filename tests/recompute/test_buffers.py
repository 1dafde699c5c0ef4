"""How the values of buffers are kept: in few operations, and to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from momentumnet.recompute.values import buffer_values


class Copies(TorchDispatchMode):
    """Counts the operations that copy."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "copy" in str(func) or "clone" in str(func)
        return func(*args, **(kwargs or {}))


def of_norms(device: str) -> list[Tensor]:
    """Running statistics, counts, and what is narrower or has gaps."""
    return [
        *(torch.tensor([-0.0, torch.nan, 1.5], device=device) for _ in range(4)),
        *(torch.tensor(2**40 + 3, device=device) for _ in range(2)),
        torch.tensor([1.0, -torch.inf], dtype=torch.float64, device=device),
    ]


def test_statistics_and_counts_on_a_gpu_are_kept_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        buffer_values, "_goes_with_others", lambda buffer: True
    )  # fake ones are of a class of their own
    with FakeTensorMode():
        kept = of_norms("cuda")
        with Copies() as copies:
            clones = buffer_values.clones_of(kept)
            assert copies.count == 1
            buffer_values.write_back(clones)
        assert copies.count == 2
        narrow = [torch.zeros(3, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        with Copies() as copies:
            buffer_values.clones_of([*kept, *narrow])
        assert copies.count == 2


def test_numbers_as_words_are_the_numbers() -> None:
    gaps = torch.zeros(4, 3)[:, 1]
    for buffer in (*of_norms("cpu"), torch.ones(3, dtype=torch.bfloat16), gaps):
        expected, words = buffer.clone(), buffer_values._words(buffer)
        kept = words.clone()
        buffer.fill_(7)
        words.copy_(kept)
        assert (
            buffer.flatten().contiguous().view(torch.uint8).tolist()
            == expected.flatten().contiguous().view(torch.uint8).tolist()
        )
    assert buffer_values._words(gaps) is gaps
