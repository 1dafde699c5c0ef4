"""Chains of layers outside the streams, recomputed together: same gradients as kept, and less memory."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.core.outside.checkpoint import CheckpointChain, _Passage
from momentumnet.streams.finding.discover import discover
from tests.contract.outside.stem import FINGERPRINT, FREED, Stem, held, images, pair
from tests.contract.reference import assert_same, train_step


def test_gradients_statistics_and_draws_are_those_of_kept_activations() -> None:
    kept, recomputed = pair(Stem)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)
    assert torch.equal(recomputed.norm.running_var, kept.norm.running_var)
    assert recomputed.norm.num_batches_tracked == 1


def test_only_the_input_of_the_first_layer_is_held() -> None:
    kept, recomputed = pair(lambda: Stem(dropout=nn.Identity()))
    assert held(kept) - held(recomputed) >= FREED - FINGERPRINT
    assert held(copy.deepcopy(recomputed)) == held(recomputed)


def test_the_plan_tells_what_a_chain_frees() -> None:
    model = Stem(dropout=nn.Identity())
    kept, recomputed = (mn.plan(model, images(), others=others).saved_after for others in ("keep", "checkpoint"))
    assert FREED <= kept - recomputed <= FREED + 100  # and the norm's mean and deviation


def test_what_comes_between_ends_a_chain() -> None:
    kept, recomputed = pair(Stem)
    for between in (lambda x: 2 * x, lambda x: x.mul_(2), lambda x: x.clone(), lambda x: x[:, :, ::2]):
        kept.between = recomputed.between = between
        assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)


def test_two_forwards_before_the_backwards_and_a_graph_that_is_kept() -> None:
    outcomes = []
    for net in pair(Stem):
        torch.manual_seed(3)
        first, second = net(images(1)).square().sum(), net(images(2)).square().sum()
        first.backward(retain_graph=True)
        second.backward()
        first.backward()
        outcomes.append([parameter.grad for parameter in net.parameters()])
    for got, expected in zip(outcomes[1], outcomes[0], strict=True):
        assert torch.equal(got, expected)


def gradient(net: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(net.parameters()))])


def second_derivative(net: nn.Module) -> Tensor:
    parameters = list(net.parameters())
    loss = net(images()).square().mean()
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    return gradient(net, sum(grad.square().sum() for grad in first))


def under_autocast(net: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output = net(images())
    return gradient(net, output.float().square().mean())


def with_other_parameters(net: nn.Module) -> Tensor:
    parameters = {name: 2 * parameter.detach() for name, parameter in net.named_parameters()}
    leaves = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    loss = functional_call(net, leaves, (images(),)).square().mean()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(leaves.values()))])


@pytest.mark.parametrize("derivative", [second_derivative, under_autocast, with_other_parameters])
def test_other_ways_to_a_gradient(derivative: Callable[[nn.Module], Tensor]) -> None:
    found = []
    for net in pair(Stem):
        torch.manual_seed(3)
        found.append(derivative(net))
    assert torch.equal(*found)
    assert found[0].norm() > 0


@pytest.mark.parametrize("frozen", ["conv", "norm", "conv norm"])
def test_frozen_layers(frozen: str) -> None:
    def build() -> nn.Module:
        net = Stem()
        for name in frozen.split():
            net.get_submodule(name).requires_grad_(False)
        return net

    kept, recomputed = pair(build)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)


def test_a_chain_that_begins_with_frozen_layers_frees_as_much() -> None:
    """No graph owns anything there: the chain goes on from what the frozen layer has returned."""

    def frozen() -> nn.Module:
        net = Stem(dropout=nn.Identity())
        net.conv.requires_grad_(False)
        return net

    kept, recomputed = pair(frozen)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)
    assert held(kept) - held(recomputed) >= FREED - FINGERPRINT


def test_an_interrupted_chain_that_begins_with_frozen_layers_holds_no_input() -> None:
    _, net = pair(Stem)
    net.conv.requires_grad_(False)
    x = images()
    given = weakref.ref(x)

    def stop(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    net.norm.forward = stop  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        net(x)
    del x
    gc.collect()
    assert given() is None


def test_copies_have_passages_of_their_own() -> None:
    _, recomputed = pair(Stem)
    output = recomputed(images())
    copied = copy.deepcopy(recomputed)
    assert copied.norm._momentumnet_role.runner is not recomputed.norm._momentumnet_role.runner
    output.sum().backward()
    again = pickle.loads(pickle.dumps(nn.Sequential(recomputed.conv, recomputed.norm, recomputed.act)))
    again(images()).sum().backward()


def test_threads_have_passages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recomputed = pair(Stem)
    meet, links, gradients = threading.Barrier(2, timeout=30), [], {}
    add = _Passage.add
    monkeypatch.setattr(
        _Passage,
        "add",
        lambda passage, *args, **options: (links.append(threading.get_ident()), add(passage, *args, **options))[1],
    )
    recomputed.between = lambda x: (meet.wait(), x)[1]  # both are between the same two layers
    recomputed.eval()

    def work(seed: int) -> None:
        loss = recomputed(images(seed)).square().sum()
        gradients[seed] = torch.autograd.grad(loss, list(recomputed.parameters()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Counter(links).values()) == [5, 5]  # each thread's convolution, norm, activation, dropout and pooling
    recomputed.between = lambda x: x
    for seed, got in gradients.items():
        expected = torch.autograd.grad(recomputed(images(seed)).square().sum(), list(recomputed.parameters()))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
    assert len(gradients) == 2


def test_layer_that_returns_two_tensors_ends_a_chain() -> None:
    class Unpooled(Stem):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            pooled, places = self.pool(x)
            if self.training:  # otherwise than in the trace
                return self.blocks(nn.functional.max_unpool2d(pooled, places, 2) + self.act(x)).mean((2, 3))
            return self.blocks(self.act(pooled)).mean((2, 3))

    def build() -> nn.Module:
        net = Unpooled()
        net.pool, net.act = nn.MaxPool2d(2, return_indices=True), nn.Softplus()
        return net

    kept, recomputed = pair(build)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)


def test_what_takes_the_first_of_two_tensors_is_not_chained_to_the_layer_that_returned_them() -> None:
    """Such a chain is recomputed in two parts, and could not be planned: it was called with both tensors."""

    class Pooled(Stem):
        def forward(self, x: Tensor) -> Tensor:
            pooled, _ = self.pool(self.norm(self.conv(x)))
            return self.blocks(self.act(self.drop(pooled))).mean((2, 3))

    torch.manual_seed(7)
    net = Pooled(dropout=nn.Softplus()).train()
    net.pool, net.act = nn.MaxPool2d(2, return_indices=True), nn.Tanh()
    assert discover(net, images()).chains == (("conv", "norm", "pool"), ("drop", "act"))
    planned = mn.convert(net, images(), gamma=0, budget="least")
    assert_same(train_step(planned, (images(),)), train_step(net, (images(),)), tolerance=0.0)


def test_revert_takes_the_chain_away() -> None:
    _, recomputed = pair(Stem)
    assert type(mn.revert(recomputed).norm) is nn.BatchNorm2d


def test_layers_with_something_between_are_no_chain() -> None:
    found = discover(Stem(between=lambda x: 2 * x), images())
    assert not any({"norm", "act"} <= set(chain) for chain in found.chains)


class Added(nn.Module):
    """float32 for float32, also where its layer computes in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def test_inputs_of_which_casts_are_saved_are_not_held() -> None:
    """Under autocast a layer saves its input in half precision: the float32 one goes, as with a plain checkpoint."""
    torch.manual_seed(0)
    parts = [Added() for _ in range(8)]
    x = torch.randn(4096, 64)

    def chained(x: Tensor) -> Tensor:
        chain = CheckpointChain("0", "7")
        for number, part in enumerate(parts):
            x = chain.call(str(number), part, part, (x,), {})
        return x

    def peak(run: Callable[[Tensor], Tensor]) -> int:
        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                output = run(x)
            output.sum().backward()

        step()
        return int(mn.measure_memory(step).peak_bytes)

    together = nn.Sequential(*parts)
    assert peak(chained) <= 1.1 * peak(lambda x: checkpoint(together, x, use_reentrant=False))


class Reordered(nn.Module):
    """Calls the layers of its chains in another order than when it was planned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        for name in ("conv", "norm", "act"):
            layers = {
                "conv": lambda: nn.Conv2d(8, 8, 3, padding=1),
                "norm": lambda: nn.BatchNorm2d(8),
                "act": nn.Sigmoid,
            }
            setattr(self, name, nn.ModuleList(layers[name]() for _ in range(4)))
        self.order = ("conv", "norm", "act")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for place in range(4):
            for name in self.order:
                x = getattr(self, name)[place](x)
        return x


def test_a_chain_whose_last_layer_is_called_in_its_middle() -> None:
    torch.manual_seed(0)
    model, x = Reordered(), torch.randn(8, 3, 24, 24)
    net = mn.convert(model, x, budget="least")
    gradients = []
    for other in (net, model):
        for order in (("conv", "norm", "act"), ("conv", "act", "norm")):
            other.order = order
            other.zero_grad()
            other(x).square().mean().backward()
        gradients.append([p.grad for p in other.parameters()])
    assert all(map(torch.equal, *gradients))
