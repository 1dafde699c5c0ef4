"""A model whose parts are converted one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import momentumnet as mn
from tests.contract.reference import train_step
from tests.models import WIDTH, ResidualMLP


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = (nn.Sequential(*[ResidualMLP() for _ in range(3)]) for _ in range(2))
        self.between = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.between(self.front(x)))


def test_parts_have_options_of_their_own_and_one_description() -> None:
    torch.manual_seed(0)
    model, x = Parts().double(), torch.randn(3, WIDTH, dtype=torch.float64)
    whole = mn.convert(model, x, gamma=0.5, backward="reversible")
    mn.set_gamma(whole.back, 0.875)
    parts = copy.deepcopy(model)
    mn.convert(parts.front, x, gamma=0.5, backward="reversible", inplace=True)
    mn.convert(parts.back, x, gamma=0.875, backward="reversible", inplace=True)
    again = mn.convert(model, like=mn.describe(parts))
    expected = train_step(whole, (x,))
    for net in (parts, again):
        got = train_step(net, (x,))
        # Scales, and so the last bits, are those of the parts' own example inputs.
        torch.testing.assert_close(got.output, expected.output)
        torch.testing.assert_close(got.gradients, expected.gradients)


def test_a_whole_with_a_converted_part_is_refused_with_its_name_and_what_to_do() -> None:
    model, x = Parts(), torch.randn(3, WIDTH)
    mn.convert(model.front, x, inplace=True)
    with pytest.raises(mn.ConversionError, match=r"converted already, in 'front'; .*model\.part.*set_gamma"):
        mn.convert(model, x)
    mn.convert(model.back, x, inplace=True)
    with pytest.raises(mn.ConversionError, match=r"converted already, in 'front', 'back'"):
        mn.convert(model, x)
    mn.convert(mn.revert(model), x)
