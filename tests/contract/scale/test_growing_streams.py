"""Streams that grow a lot on the way, as their example has shown: small embeddings, blocks with a norm at their end."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.models import WIDTH

# Of embeddings; a branch behind a norm is of the size of 1. (Words of float32 have more bits free.)
START = {torch.float64: 0.005, torch.float32: 1e-4}


class Routed(nn.Module):
    """A mixture of two experts, which reads into Python who goes where; so no pass can be made over."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == index)
            if rows.numel() and rows.max().item() >= 0:
                y = y.index_add(0, rows, expert(x[rows]))
        return x + self.norm(y)


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Routed() for _ in range(4))).to(dtype)


def rows(dtype: torch.dtype) -> Tensor:
    return START[dtype] * torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("dtype", START)
def test_the_first_step_goes_by_what_the_example_has_shown(
    dtype: torch.dtype, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model(dtype), rows(dtype), backward=backward)
        mn.set_range_check(net, where)
        with caplog.at_level(logging.WARNING, "momentumnet"):
            for _ in range(2):
                net.zero_grad(set_to_none=True)
                y = net(rows(dtype))
                loss_of(y).backward()
                found.append([y.detach(), *(p.grad for p in net.parameters())])
    assert not caplog.text
    for mine, theirs in zip(found[2] + found[3], found[0] + found[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_pass_that_cannot_be_made_over_is_not_said_to_have_been(caplog: pytest.LogCaptureFixture) -> None:
    x = rows(torch.float32)
    net = mn.convert(model(torch.float32), x, backward="reversible")
    loss_of(net(x)).backward()
    nn.init.constant_(net[2].norm.weight, 1e6)
    with caplog.at_level(logging.WARNING, "momentumnet"), pytest.raises(mn.StateRangeError, match="run this step"):
        net(x)
    assert "played again" not in caplog.text
