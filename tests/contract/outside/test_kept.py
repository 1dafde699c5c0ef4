"""The last blocks keep their activations, as a plan may choose; nothing else changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.state.exact_state import ExactState
from tests.contract.outside.kept_blocks import DEPTH, Wide, chain, converted
from tests.contract.outside.stream_then_module import CONVERSIONS, StreamThenModule, rows
from tests.contract.reference import Outcome, assert_same, loss_of, train_step
from tests.models import Case, Chain

EVERYTHING = 1 << 20


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
@pytest.mark.parametrize("kept", [1, 2, EVERYTHING])
def test_gradients_equal_stored(case: Case, others: str, kept: int) -> None:
    model, example = case.model(), case.example()
    stored = mn.convert(model, example, backward="stored")
    net = converted(model, example, kept, others)
    assert_same(train_step(net, example), train_step(stored, example), tolerance=0.0)


@pytest.mark.parametrize("kept", range(1, DEPTH + 1))
def test_kept_blocks_are_called_once(kept: int) -> None:
    net = converted(chain(), rows(), kept)
    loss_of(net(rows())).backward()
    assert [block.calls[0] for block in net.blocks] == [2] * (DEPTH - kept) + [1] * kept


def outcomes(backward: Callable[[nn.Module, Tensor], None], kept: int = 2, **options: Any) -> list[Outcome]:
    nets = [
        mn.convert(chain(Wide), rows(), backward="stored", **options),
        converted(chain(Wide), rows(), kept, **options),
    ]
    return [train_step(net, (rows(),), backward=lambda output, net=net: backward(net, output)) for net in nets]


def twice_through_one_graph(_: nn.Module, output: Tensor) -> None:
    loss_of(output).backward(retain_graph=True)
    (3 * loss_of(output)).backward()


def after_another_forward(net: nn.Module, output: Tensor) -> None:
    (loss_of(net(rows(2))) + 2 * loss_of(output)).backward()


def of_the_gradient(net: nn.Module, output: Tensor) -> None:
    first = torch.autograd.grad(loss_of(output), list(net.parameters()), create_graph=True)
    sum(gradient.square().sum() for gradient in first).backward()


@pytest.mark.parametrize("backward", [twice_through_one_graph, after_another_forward, of_the_gradient])
@pytest.mark.parametrize("options", CONVERSIONS)
def test_every_way_back(backward: Callable[[nn.Module, Tensor], None], options: dict[str, Any]) -> None:
    expected, got = outcomes(backward, **options)
    assert_same(got, expected)


@pytest.mark.parametrize("tapped", range(DEPTH))
def test_loss_on_a_value_inside_the_stream(tapped: int) -> None:
    results = []
    for net in (mn.convert(chain(), rows(), backward="stored"), converted(chain(), rows(), 3)):
        seen: list[Tensor] = []
        net.blocks[tapped].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        results.append(train_step(net, (rows(),), backward=lambda out, seen=seen: loss_of(seen[-1]).backward()))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("frozen", [2, 4, DEPTH])
@pytest.mark.parametrize("kept", [1, 3])
def test_blocks_that_need_no_gradient(frozen: int, kept: int) -> None:
    results = []
    for spare in (0, 1):
        model = chain(Wide)
        model.stem.requires_grad_(False)
        for block in model.blocks[:frozen]:
            block.requires_grad_(False)
        net = converted(model, rows(), kept) if spare else mn.convert(model, rows(), backward="stored")
        loss_of(net(rows())).backward()
        results.append([p.grad for p in net.parameters() if p.requires_grad])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


class Spoiled(Wide):
    """Returns NaN in its first row, if asked for."""

    spoil = False

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output * torch.where(torch.arange(len(x)) == 0, torch.nan, 1.0)[:, None] if self.spoil else output


@pytest.mark.parametrize("place", range(DEPTH))
def test_not_a_number_in_any_block_reaches_the_loss(place: int) -> None:
    results = []
    for spare in (False, True):
        net = converted(chain(Spoiled), rows(), 3) if spare else mn.convert(chain(Spoiled), rows(), backward="stored")
        net.blocks[place].spoil = True
        output = net(rows())
        loss_of(output).backward()
        results.append([output, *(parameter.grad for parameter in net.parameters())])
    assert results[0][0].isnan().any(dim=1).tolist() == [True] + [False] * (len(rows()) - 1)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_not_a_number_in_front_of_a_recomputed_module() -> None:
    model = StreamThenModule()
    model.blocks[1] = Spoiled()
    net = mn.convert(model, rows(), others="checkpoint")
    net.blocks[1].spoil = True
    loss_of(net(rows())).backward()
    assert all(layer.weight.grad.isnan().any() for layer in (net.start, net.behind[0], net.behind[2]))


class Impatient(Chain):
    """Takes a gradient on its way, behind some block."""

    behind = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        early = torch.zeros(())
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == self.behind and torch.is_grad_enabled():
                (first,) = torch.autograd.grad(x.square().sum(), self.stem.weight, retain_graph=True)
                early = first.square().mean()
        return self.head(x) + early


@pytest.mark.parametrize("behind", range(DEPTH))
def test_gradient_taken_on_the_way(behind: int) -> None:
    results = []
    for spare in (False, True):
        torch.manual_seed(7)
        model = Impatient([Wide() for _ in range(DEPTH)])
        net = converted(model, rows(), 3) if spare else mn.convert(model, rows(), backward="stored")
        net.behind = behind
        results.append(train_step(net, (rows(),)))
    assert_same(results[1], results[0], tolerance=0.0)


@pytest.mark.parametrize("place", [1, 4])
def test_values_that_outgrow_the_scale_on_either_side(place: int) -> None:
    results: list[list[Outcome]] = []
    for spare in (False, True):
        net = converted(chain(Wide), rows(), 3) if spare else mn.convert(chain(Wide), rows(), backward="stored")
        with torch.no_grad():
            net.blocks[place].inner[2].weight.mul_(1e4)
        results.append([train_step(net, (rows(),)) for _ in range(3)])
    # In later steps the scale is the one that the first has taught.
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected, tolerance=0.0)


def test_parameters_of_recomputed_blocks_that_changed_are_refused_still() -> None:
    net = converted(chain(), rows(), 3)
    loss = loss_of(net(rows()))
    with torch.no_grad():
        net.blocks[1].inner[0].weight.add_(1)
    with pytest.raises(mn.ReconstructionError, match=r"blocks\.1"):
        loss.backward()


def test_a_stream_that_runs_twice_keeps_as_many_blocks_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain()

        def forward(self, x: Tensor) -> Tensor:
            return self.chain(x) - self.chain(2 * x)

    expected = train_step(mn.convert(Twice(), rows(), gamma=0.5, backward="stored"), (rows(),))
    net = mn.convert(Twice(), rows(), gamma=0.5)
    assert_same(train_step(net, (rows(),)), expected)
    least = mn.plan(Twice(), rows(), budget="least", gamma=0.5)
    plan = mn.plan(Twice(), rows(), budget=(least.peak + least.stored_peak) // 2, gamma=0.5)
    ways = [unit.way for unit in plan.units]
    assert len(ways) == 2 * DEPTH
    assert 0 < ways.count("stored") < 2 * DEPTH
    assert ways[:DEPTH] == ways[DEPTH:]
    net = mn.convert(Twice(), rows(), plan=plan)
    assert_same(train_step(net, (rows(),)), expected, tolerance=0.0)
    assert [block.calls[0] for block in net.chain.blocks] == [2 * (1 if way == "stored" else 2) for way in ways[:DEPTH]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_as_many_blocks(copied: Callable[[nn.Module], nn.Module]) -> None:
    net = copied(converted(chain(), rows(), 2))
    before = [block.calls[0] for block in net.blocks]
    loss_of(net(rows())).backward()
    assert [block.calls[0] - count for block, count in zip(net.blocks, before, strict=True)] == [2] * 4 + [1] * 2


def test_a_stream_that_is_kept_whole_puts_no_state_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[ExactState] = []
    fork = ExactState.fork
    monkeypatch.setattr(ExactState, "fork", lambda state, extremes=None: forks.append(state) or fork(state))
    for kept, expected in ((DEPTH - 1, 1), (DEPTH, 0)):
        loss_of(converted(chain(), rows(), kept)(rows())).backward()
        assert len(forks) == expected
        forks.clear()
