"""What waits beside a block of a momentum stream while its backward runs, as predicted and as measured."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.state.exact_state import SMALL_STREAM
from momentumnet.native import available
from tests.models import Chain, ResidualMLP

WIDTH = 32


class Branch(nn.Module):
    """Keeps about ten times its input: more than a state, or a kept input, takes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(x))  # type: ignore[no-any-return]


class Stack(nn.Module):
    def __init__(self, blocks: int, frozen: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Branch() for _ in range(blocks))
        for module in (self.stem, *self.blocks[:frozen]) if frozen else ():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.head(x.mean(1))
        return output


@pytest.mark.skipif(not available(), reason="operations in the place of kernels have temporaries, not predicted")
@pytest.mark.parametrize(
    ("blocks", "frozen", "rows", "way"),
    [
        (8, 0, 4, "checkpointed"),
        (8, 4, 4, "checkpointed"),
        (6, 5, 64, "checkpointed"),
        (6, 6, 64, "stored"),
        (6, 0, 64, "reversible"),
        (6, 0, 1 + SMALL_STREAM // (WIDTH * 24), "reversible"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_least_is_met(blocks: int, frozen: int, rows: int, way: str, autocast: bool) -> None:
    """Gradients of x and v, where somebody in front gets them, and the x that is made ahead in small streams.

    Where little is trained the forward is the fullest: what the stream begins with, and the last that a block saves.
    """
    torch.manual_seed(0)
    model, x = Stack(blocks, frozen), torch.randn(rows, 24, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plan = mn.plan(model, x, budget="least", gamma=Fraction(1, 8))
    assert plan.measured_peak is not None
    assert plan.peak == pytest.approx(plan.measured_peak, rel=5e-3)
    if not autocast:
        assert way in {unit.way for unit in plan.units if unit.stream == "blocks"}


@pytest.mark.skipif(not available(), reason="operations in the place of kernels have temporaries, not predicted")
def test_gradients_that_are_added_at_once_are_one() -> None:
    """Of a block that hands its output's gradient straight to x, it is added to the one that waits for x."""
    torch.manual_seed(0)
    model, x = Chain([ResidualMLP(16, 128) for _ in range(7)]), torch.randn(1024, 16)
    plan = mn.plan(model, x, budget="least", gamma=Fraction(1, 8))
    assert plan.measured_peak is not None
    assert plan.peak == pytest.approx(plan.measured_peak, rel=1e-3)
