"""A block in a loop, as recurrent cells are: of other lengths than in the example."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH

GAMMA = 0.5


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h + 0.5 * torch.tanh(self.layer(h) + x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, sequence: Tensor) -> Tensor:
        h = torch.zeros_like(sequence[0])
        for x in sequence:
            h = self.cell(h, x)
        return h


def sequence(length: int) -> Tensor:
    return torch.randn(length, 3, WIDTH, dtype=torch.float64)


def by_hand(cell: nn.Module, given: Tensor) -> Tensor:
    h, v = torch.zeros_like(given[0]), torch.zeros_like(given[0])
    for x in given:
        v = GAMMA * v + (1 - GAMMA) * (cell(h, x) - h)
        h = h + v
    return h


@pytest.mark.parametrize("length", [4, 9])
def test_a_loop_of_another_length_is_warned_of(length: int) -> None:
    torch.manual_seed(0)
    net = mn.convert(Recurrent().double(), sequence(6), gamma=GAMMA)
    net(sequence(length)).sum().backward()
    with pytest.warns(mn.MomentumNetWarning, match=rf"a loop of 6 steps.* left behind step {length % 6 or 6}"):
        net(sequence(6))


def test_a_loop_of_that_length_or_of_whole_passes_is_not_nor_a_gradient_on_the_way() -> None:
    torch.manual_seed(0)
    net = mn.convert(Recurrent().double(), sequence(6), gamma=GAMMA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in (6, 12, 6):
            net(sequence(length)).sum().backward()
        h = torch.zeros(3, WIDTH, dtype=torch.float64)
        for step, x in enumerate(sequence(6)):
            h = net.cell(h, x)
            if step == 2:
                h.sum().backward(retain_graph=True)
        h.sum().backward()
        net(sequence(6)).sum().backward()


@pytest.mark.parametrize("length", [4, 6])
def test_without_a_flush_shorter_loops_lack_nothing(length: int) -> None:
    torch.manual_seed(0)
    model, given = Recurrent().double(), sequence(length)
    net = mn.convert(model, sequence(6), gamma=GAMMA, final_velocity="drop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            net.zero_grad()
            output = net(given)
            output.square().sum().backward()
    expected = by_hand(model.cell, given)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(net.cell.layer.weight.grad, model.cell.layer.weight.grad)
