"""Streams inside the blocks of a stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.parents import BACKWARDS, Looped, converted, straight
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH


class Nested(nn.Module):
    """A residual block whose branch is itself a stream, which outgrows the scale of its first pass."""

    def __init__(self) -> None:
        super().__init__()
        functions = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), Scaled(20.0)) for _ in range(4)]
        self.net = mn.MomentumNet(functions, gamma=0.75, use_backprop=False)  # uses the whole word, so it overflows
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.out(self.net(0.3 * x))


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_stream_inside_a_block_is_recomputed_at_the_scale_of_its_forward(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, x = Looped(straight, Nested), torch.randn(5, WIDTH)
    # The outer state uses the whole word at this gamma, too: it sees what another scale does to the inner one's output.
    with caplog.at_level("INFO", logger="momentumnet"):
        outcomes = [train_step(converted(model, backward, gamma=0.75), (x,)) for backward in BACKWARDS]
    assert_same(outcomes[1], outcomes[0])
    assert "widened" in caplog.text
