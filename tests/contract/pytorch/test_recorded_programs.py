"""A converted network as a program that is recorded: exported, or refused with what to do instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.pytorch.rule_in_operations import GAMMA, network, reference, rows
from tests.models import WIDTH, ResidualMLP


def test_export_of_the_reverted_network_and_with_dynamic_batch() -> None:
    model = network()
    net = mn.convert(model, rows(), gamma=GAMMA).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (rows(),), dynamic_shapes=({0: batch},), strict=False).module()
    more = torch.cat([rows(7), rows(8)])
    torch.testing.assert_close(exported(more), reference()(more))
    reverted = torch.export.export(mn.revert(net), (rows(),), strict=False).module()
    torch.testing.assert_close(reverted(rows(7)), model(rows(7)))


def test_strict_export_says_what_to_do() -> None:
    net = mn.convert(network(), rows(), gamma=GAMMA).eval()
    with pytest.raises(Exception, match="strict=False"):
        torch.export.export(net, (rows(),), strict=True)


def test_scripting_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*[Residual() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.tanh().matmul(x.t().matmul(x))

    net = mn.convert(Plain(), rows())
    with pytest.raises(mn.ConversionError, match=r"torch.jit.trace or torch.export"):
        torch.jit.script(net)
    with pytest.raises(mn.ConversionError, match=r"torch.jit.trace or torch.export"):
        torch.jit.script(mn.MomentumNet([nn.Linear(WIDTH, WIDTH)], gamma=0.9))
    torch.jit.script(mn.revert(net))


def test_symbolic_trace_is_refused() -> None:
    net = mn.convert(nn.Sequential(*[ResidualMLP().double() for _ in range(3)]), rows())
    with pytest.raises(mn.ConversionError, match=r"use torch.export, or trace momentumnet.revert"):
        torch.fx.symbolic_trace(net)
