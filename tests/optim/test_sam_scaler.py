"""SAM and extragradient under a gradient scaler: what it skips, and what it hears of."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW

from momentumnet.optim import SAM, Extragradient
from tests.optim.nets import batch, closure_of, loss_of, network, values


def scaled_step(optimizer: SAM, scaler: GradScaler, loss: Callable[[int], Tensor], limit: float = math.inf) -> None:
    """The loop of docs/sam.md; ``loss`` is told which pass it is."""
    optimizer.zero_grad()
    scaler.scale(loss(0)).backward()
    scaler.unscale_(optimizer)
    optimizer.first_step()
    optimizer.zero_grad()
    scaler.scale(loss(1)).backward()
    if limit < math.inf:
        scaler.unscale_(optimizer.base_optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)
    optimizer.second_step(scaler)
    scaler.update()


@pytest.mark.parametrize("kind", [SAM, Extragradient])
@pytest.mark.parametrize("limit", [math.inf, 0.05])
def test_grad_scaler_changes_nothing_but_the_scale(kind: type, limit: float) -> None:
    (net, plain), (x, y) = (network(torch.float32), network(torch.float32)), batch(torch.float32)
    optimizer, scaler = kind(net.parameters(), SGD, lr=0.5, momentum=0.9), GradScaler("cpu", init_scale=2.0**12)
    reference = kind(plain.parameters(), SGD, lr=0.5, momentum=0.9)
    for _ in range(3):
        scaled_step(optimizer, scaler, lambda _: loss_of(net, x, y), limit)
        for step in (reference.first_step, reference.second_step):
            closure_of(reference, lambda: loss_of(plain, x, y))()
            if step == reference.second_step and limit < math.inf:
                nn.utils.clip_grad_norm_(plain.parameters(), limit)
            step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [SAM, Extragradient])
@pytest.mark.parametrize("overflows", [(0,), (1,), (0, 1)])
def test_an_overflow_in_either_pass_skips_the_step(kind: type, overflows: tuple[int, ...]) -> None:
    net, (x, y) = network(torch.float32), batch(torch.float32)
    optimizer, scaler = kind(net.parameters(), SGD, lr=0.5, momentum=0.9), GradScaler("cpu", init_scale=2.0**12)
    before = values(net)
    scaled_step(optimizer, scaler, lambda i: loss_of(net, x, y) * (math.inf if i in overflows else 1))
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))
    assert scaler.get_scale() == 2.0**11
    assert not optimizer.state
    scaled_step(optimizer, scaler, lambda _: loss_of(net, x, y))
    assert not torch.equal(net[0].weight, before[0])


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_hears_of_a_first_pass_that_it_has_not_unscaled(fused: bool) -> None:
    """The direction of SAM does not depend on the scale, so that loops leave the first ``unscale_`` out."""
    net, (x, y) = network(torch.float32), batch(torch.float32)
    optimizer, scaler = SAM(net.parameters(), AdamW, fused=fused), GradScaler("cpu", init_scale=2.0**12)
    before = values(net)
    for factor, step in ((math.inf, optimizer.first_step), (1, lambda: optimizer.second_step(scaler))):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, x, y) * factor).backward()
        step()
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


def test_a_disabled_scaler_does_not_matter() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, lr=0.5)
    before = values(net)
    scaled_step(optimizer, GradScaler("cpu", enabled=False), lambda _: loss_of(net, x, y))
    assert not torch.equal(net[0].weight, before[0])
