"""SAM in training loops: schedulers, clipping, accumulation, running statistics, dropout, chunks, blocks."""

from __future__ import annotations

import copy
import gc
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import momentumnet as mn
from momentumnet.optim import SAM, Extragradient
from momentumnet.optim.passes import RunningStatistics
from tests.models import WIDTH, Chain, DepthDropBlock, ResidualMLP
from tests.optim.nets import batch, closure_of, loss_of, network, sam_gradient, two_passes, values


@pytest.mark.parametrize("by_hand", [False, True])
def test_schedulers_attach_to_sam(by_hand: bool) -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, rho=0.2, lr=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "scheduler.step() before optimizer.step()"
        scheduler = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
        for lr in (0.5, 0.25, 0.5 / 3):
            before = values(net)
            gradients = sam_gradient(list(net.parameters()), lambda: loss_of(net, x, y), [0.2] * 4)
            closure = closure_of(optimizer, lambda: loss_of(net, x, y))
            two_passes(optimizer, closure, by_hand=by_hand)
            scheduler.step()
            for parameter, w, g in zip(net.parameters(), before, gradients, strict=True):
                torch.testing.assert_close(parameter.detach(), w - lr * g, rtol=1e-12, atol=1e-14)


def test_momentum_of_one_cycle_arrives_at_the_base_optimizer() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=8)
    seen = []
    for _ in range(6):
        optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))
        scheduler.step()
        seen.append(optimizer.base_optimizer.param_groups[0]["momentum"])
    assert len(set(seen)) == 5  # down and up again
    assert min(seen) < 0.86


def test_a_group_added_later_is_trained() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net[0].parameters(), SGD, rho=0.3, lr=0.5)
    optimizer.add_param_group({"params": net[2].parameters(), "rho": 0.1})
    before = values(net)
    expected = sam_gradient(list(net.parameters()), lambda: loss_of(net, x, y), [0.3, 0.3, 0.1, 0.1])
    optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))
    for parameter, w, g in zip(net.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), w - 0.5 * g, rtol=1e-12, atol=1e-14)


def test_accumulated_and_clipped_gradients() -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, rho=0.2, lr=0.5)
    before = values(net)
    expected = sam_gradient(list(net.parameters()), lambda: loss_of(net, x, y), [0.2] * 4)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    limit = norm.item() / 3

    def closure() -> Tensor:
        optimizer.zero_grad()
        for part in (slice(0, 6), slice(6, 12)):
            (loss_of(net, x[part], y[part]) / 2).backward()
        nn.utils.clip_grad_norm_(net.parameters(), limit)
        return torch.zeros(())

    optimizer.step(closure)
    for parameter, w, g in zip(net.parameters(), before, expected, strict=True):
        clipped = limit * g / (norm + 1e-6)  # as torch does it
        torch.testing.assert_close(parameter.detach(), w - 0.5 * clipped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [SAM, Extragradient])
def test_gradients_that_only_the_first_call_adds_to_are_told_of(kind: type) -> None:
    """Lightning's accumulate_grad_batches: the second pass held the last batch alone, in silence."""
    net, (x, y) = network(), batch()
    optimizer = kind(net.parameters(), SGD, lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()

        def closure() -> Tensor:
            loss = loss_of(net, x, y)
            loss.backward()
            return loss

        with pytest.warns(mn.MomentumNetWarning, match="closure added to them") as told:
            optimizer.step(closure)
        assert told[0].filename == __file__


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_begins_anew_is_not_warned_of(set_to_none: bool) -> None:
    """Whatever has left gradients: a first loss, the two steps by themselves, a batch that the closure goes on with."""
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=set_to_none)
        for _ in range(2):
            loss = loss_of(net, x, y)
            loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            loss_of(net, x, y).backward()  # as the loss of another network leaves gradients in a discriminator
            optimizer.step(closure)
            optimizer.first_step()
            optimizer.second_step()
        copy.deepcopy(optimizer).step(lambda: torch.zeros(()))


@pytest.mark.parametrize("kind", [SAM, Extragradient])
def test_a_first_gradient_that_is_not_finite_moves_nothing(kind: type) -> None:
    net = network()
    optimizer, before = kind(net.parameters(), SGD, lr=0.5), values(net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    assert not optimizer.first_step()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


class Norms(nn.Module):
    """Every kind of norm with running statistics that runs on a CPU, and one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.BatchNorm1d(5, momentum=None)
        self.moving = nn.BatchNorm1d(5)
        self.instance = nn.InstanceNorm1d(1, track_running_stats=True)
        self.still = nn.BatchNorm1d(5).eval()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.still(self.moving(self.mean(x)))
        return self.head(x + self.instance(x[:, None]).squeeze(1))


@pytest.mark.parametrize("mode", ["closure", "by hand", "model", "compiled"])
def test_running_statistics_count_a_batch_once(mode: str) -> None:
    torch.manual_seed(0)
    net, (x, y) = Norms(), batch(torch.float32)
    once = Norms()
    once.load_state_dict(net.state_dict())
    once(x)
    run = torch.compile(net, backend="eager") if mode == "compiled" else net
    model = run if mode in ("model", "compiled") else None  # torch.compile does not like hooks on all modules
    optimizer = SAM(net.parameters(), SGD, rho=0.5, lr=0.0, model=model)
    closure = closure_of(optimizer, lambda: loss_of(run, x, y))
    two_passes(optimizer, closure, by_hand=mode == "by hand")
    expected = dict(once.named_buffers())
    assert expected["moving.num_batches_tracked"] == 1
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    net(x)  # no trace of the step is left: statistics move again
    assert net.moving.num_batches_tracked == 2


def test_statistics_of_sync_batch_norm_are_put_back() -> None:
    norm = nn.SyncBatchNorm(3)  # runs on accelerators only
    statistics = RunningStatistics(norm)
    norm.running_mean.fill_(7)
    norm.num_batches_tracked.add_(1)
    statistics.put_back()
    assert norm.running_mean.eq(0).all()
    assert norm.num_batches_tracked == 0


def test_an_optimizer_dropped_in_mid_step_leaves_no_hook() -> None:
    net = Norms()
    optimizer = SAM(net.parameters(), SGD, lr=0.1)
    loss_of(net, *batch(torch.float32)).backward()
    optimizer.first_step()
    assert nn.modules.module._has_any_global_hook()
    del optimizer
    gc.collect()
    assert not nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("same_random", [False, True])
def test_same_dropout_mask_in_both_passes(same_random: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    x, y = batch(torch.float32)
    masks: list[Tensor] = []
    net[1].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    optimizer = SAM(net.parameters(), SGD, lr=0.1, same_random=same_random)
    for _ in range(2):
        optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))
    assert torch.equal(masks[0], masks[1]) == torch.equal(masks[2], masks[3]) == same_random
    assert not torch.equal(masks[0], masks[2])
    if same_random:
        with pytest.raises(ValueError, match="set_rng_state"):
            optimizer.first_step()


def test_converted_networks_train_as_with_stored_activations() -> None:
    results = []
    x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    for backward in ("stored", "reversible"):
        torch.manual_seed(0)
        net = Chain(
            [nn.Sequential(kind(), nn.BatchNorm1d(WIDTH)) for kind in (ResidualMLP, DepthDropBlock, ResidualMLP)]
        )
        net = mn.convert(net, x, streams=["blocks"], backward=backward)
        optimizer = SAM(net.parameters(), SGD, rho=0.2, lr=0.1, momentum=0.9, same_random=True)
        for _ in range(3):
            optimizer.step(closure_of(optimizer, lambda: net(x).square().mean()))  # noqa: B023 called in this round
        results.append(net.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("m", [12, 5, 1])
def test_chunks_take_their_gradients_at_perturbations_of_their_own(m: int) -> None:
    net, (x, y) = network(), batch()
    optimizer = SAM(net.parameters(), SGD, rho=0.2, lr=0.5)
    before = values(net)
    expected = [torch.zeros_like(w) for w in before]
    for cx, cy in zip(x.split(m), y.split(m), strict=True):
        gradients = sam_gradient(list(net.parameters()), lambda: loss_of(net, cx, cy), [0.2] * 4)  # noqa: B023
        expected = [total + len(cx) / 12 * g for total, g in zip(expected, gradients, strict=True)]
    mean_loss = loss_of(net, x, y)

    loss = optimizer.step_chunks(lambda cx, cy: loss_of(net, cx, cy), x, y, m=m)

    torch.testing.assert_close(loss, mean_loss.detach(), rtol=1e-12, atol=0)
    for parameter, w, g in zip(net.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), w - 0.5 * g, rtol=1e-12, atol=1e-14)
