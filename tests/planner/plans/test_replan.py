"""Inputs larger than the example that was planned for: told of, or planned again."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.conversion import planned
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.planner.plans import batch_watch
from momentumnet.streams.blocks.converted import converted_blocks, streams_of
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, ResidualMLP
from tests.planner.plans.larger_batches import BUDGET, GAMMA, TOLD, step, ways
from tests.planner.wide import chain, rows


def test_what_was_said_of_one_stream_is_its_own_behind_a_new_plan() -> None:
    model = nn.Sequential(chain(), nn.Linear(4, WIDTH), nn.Sequential(*(ResidualMLP() for _ in range(3))))
    net = mn.convert(model, rows(16), gamma=GAMMA, budget="1GiB", replan="auto")
    mn.set_gamma(net[2], 0.5)
    mn.set_range_check(net[2], "backward")
    watch = [hook for hook in net._forward_pre_hooks.values() if isinstance(hook, batch_watch.BatchWatch)]
    step(net, 64)
    assert watch != [hook for hook in net._forward_pre_hooks.values() if isinstance(hook, batch_watch.BatchWatch)]
    found = {(stream.gamma, stream.range_check) for stream in streams_of(net)}
    assert found == {(Fraction(1, 8), "forward"), (Fraction(1, 2), "backward")}


def test_a_network_with_parameters_that_are_still_to_come_follows_a_plan(caplog: pytest.LogCaptureFixture) -> None:
    """Lazy ones have no size before their first forward."""
    model = nn.Sequential(chain(), nn.Linear(4, 3))
    plan = mn.plan(model, rows(16), gamma=GAMMA, budget="least")
    net = mn.convert(nn.Sequential(chain(), nn.LazyLinear(3)), plan=plan)
    assert net(rows(16)).shape == (16, 3)
    assert not caplog.text


class Normed(nn.Module):
    """In front a norm, whose running statistics autograd saves."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())
        self.blocks = chain()

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.front(x))


@pytest.mark.parametrize("gamma", [0, GAMMA])
def test_planned_again_while_a_backward_is_still_to_come(gamma: float) -> None:
    torch.manual_seed(0)
    model, found = Normed(), []
    for options in ({"spare": 1 << 20, "replan": "auto"}, {"backward": "stored"}):
        net = mn.convert(model, rows(16), gamma=gamma, **options)
        first, second = net(rows(16)), net(rows(32))
        (first.square().mean() + second.square().mean()).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("planned_again", [True, False])
def test_planning_leaves_graphs_of_before_valid(planned_again: bool) -> None:
    model = Normed()
    before = model(rows(16)).square().mean()
    if planned_again:
        mn.plan(model, rows(8), budget="least")
    else:
        mn.plan(model, rows(8))
    before.backward()


def test_not_planned_again_under_a_transform() -> None:
    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget=BUDGET, replan="auto")
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, x).square().mean()

    for x in (rows(16), rows(64)):
        found = torch.func.grad(loss)(parameters, x)
        expected = torch.autograd.grad(loss(parameters, x), [*parameters.values()])
        torch.testing.assert_close([*found.values()], [*expected], rtol=1e-4, atol=1e-6)


def test_planned_again_it_fits_and_the_gradients_are_those_of_stored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "momentumnet")
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto", inplace=True)
    parameters = list(net.parameters())
    assert ways(net)[1] == 6
    step(net, 4)
    expected = train_step(mn.convert(chain(), rows(64), backward="stored"), (rows(64),))
    assert_same(train_step(net, (rows(64),)), expected)
    assert TOLD not in caplog.text
    assert "planning again" in caplog.text
    assert ways(net)[1] < 6
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net.zero_grad(set_to_none=True)
    assert mn.measure_memory(lambda: step(net, 64)).peak_bytes <= BUDGET
    assert caplog.text.count("planning again") == 1


def test_gamma_is_the_one_that_was_set() -> None:
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto")
    mn.set_gamma(net, 0.5)
    step(net, 64)
    assert mn.describe(net)["streams"][0]["gamma"] == "1/2"


@pytest.mark.parametrize("fails", [False, True])
def test_its_range_is_checked_when_it_was_said(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto")
    mn.set_range_check(net, "backward")
    if fails:
        monkeypatch.setattr(planned, "step_plan", refuse)
        with pytest.raises(mn.ConversionError, match="not now"):
            step(net, 64)
    else:
        step(net, 64)
    assert {stream.range_check for stream in streams_of(net)} == {"backward"}


class Fading(nn.Module):
    """Of long inputs its blocks do something else, in which there is no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = chain()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 16:
            for block in self.chain.blocks:
                x = (block(x) - x) * 0.5
            return x
        return self.chain(x)


def test_where_other_streams_are_found_the_function_stays() -> None:
    torch.manual_seed(0)
    net = mn.convert(Fading(), rows(16), gamma=GAMMA, budget=1 << 40, replan="auto")
    before, streams = copy.deepcopy(net), mn.describe(net)["streams"]
    with pytest.raises(
        mn.ConversionError, match=r"other streams than it was converted with \(chain.blocks before, none now\)"
    ):
        step(net, 64)
    assert mn.describe(net)["streams"] == streams
    assert_same(train_step(net, (rows(16),)), train_step(before, (rows(16),)), tolerance=0.0)


def refuse(*args: object, **kwargs: object) -> None:
    raise mn.ConversionError("not now")


def test_where_nothing_fits_the_training_goes_on_with_the_least(caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget=BUDGET, replan="auto")
    for _ in range(2):
        step(net, 4096)
    assert caplog.text.count("no choice fits a budget") == 1
    assert "The training goes on with the least" in caplog.text
    least = mn.plan(chain(), rows(4096), gamma=GAMMA, budget="least").measured_peak
    assert mn.measure_memory(lambda: step(net, 4096)).peak_bytes == pytest.approx(least, rel=0.05)
    expected = train_step(mn.convert(chain(), rows(64), backward="stored"), (rows(64),))
    assert_same(train_step(net, (rows(64),)), expected)
    step(net, 8192)
    assert caplog.text.count("no choice fits a budget") == 2


def test_arguments_by_name_and_by_position() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.chain(x) * scale

    for call in ((lambda net, x: net(x, scale=x.new_ones(()))), (lambda net, x: net(x=x, scale=x.new_ones(())))):
        net = mn.convert(Two(), (rows(4), torch.ones(())), gamma=GAMMA, budget=BUDGET, replan="auto")
        call(net, rows(64)).sum().backward()
        assert ways(net)[1] < 6


def test_arguments_that_have_no_name_or_any() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.chain = chain()

        def forward(self, x: Tensor, /, *others: Tensor, scale: float = 1.0, **options: object) -> Tensor:
            assert not options, options
            return (self.chain(x) + sum(other.mean() for other in others)) * scale

    net = mn.convert(Sum(), (rows(4), rows(4)), gamma=GAMMA, budget=BUDGET, replan="auto")
    net(rows(64), rows(64), rows(64), scale=2.0).sum().backward()
    assert ways(net)[1] < 6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_plan_themselves_again(copied: Callable[[nn.Module], nn.Module]) -> None:
    original = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto")
    net = copied(original)
    step(net, 64)
    assert ways(net)[1] < 6
    assert ways(original)[1] == 6


def test_nothing_is_left_of_it_on_a_reverted_model(caplog: pytest.LogCaptureFixture) -> None:
    net = mn.revert(mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET))
    step(net, 64)
    assert not net._forward_pre_hooks
    assert not net._forward_pre_hooks_with_kwargs
    assert TOLD not in caplog.text


def test_what_replan_may_be() -> None:
    with pytest.raises(ValueError, match="replan must be one of 'never', 'auto', got True"):
        mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan=True)
    with pytest.raises(ValueError, match="nothing is planned; give a budget"):
        mn.convert(chain(), rows(4), replan="auto")
    plan = mn.plan(chain(), rows(4), gamma=GAMMA, budget=BUDGET)
    with pytest.raises(mn.ConversionError, match="replan was given, too"):
        mn.convert(chain(), plan=plan, replan="auto")


def test_what_cannot_be_planned_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise mn.ConversionError("there is no plan")

    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget=BUDGET, replan="auto")
    mn.set_gamma(net, 0.5)
    step(net, 16)
    outcome, before, learned = train_step(net, (rows(16),)), mn.describe(net), mn.training_state(net)
    monkeypatch.setattr(planned, "step_plan", fails)
    for batch in (4096, 8192):
        with pytest.raises(mn.ConversionError, match="there is no plan"):
            step(net, batch)
        assert mn.describe(net) == before
        assert mn.training_state(net) == learned
    net.zero_grad(set_to_none=True)
    assert_same(train_step(net, (rows(16),)), outcome, tolerance=0.0)


@pytest.mark.parametrize("ends", [(1 / 8, 0), (0, 1 / 2)], ids=str)
def test_a_schedule_goes_on_where_it_is_planned_again_at_zero(ends: tuple[float, float]) -> None:
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto")
    schedule = mn.schedule_gamma(net, 2, *ends)
    while schedule.gamma:
        schedule.step()
    stock = mn.revert(net)
    assert torch.equal(net(rows(64)), stock(rows(64)))
    schedule.step()
    schedule.step()
    assert mn.describe(net)["streams"][0]["gamma"] == str(schedule.end)


def test_gamma_is_that_of_the_planned_streams_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = mn.MomentumNet([nn.Linear(WIDTH, WIDTH) for _ in range(2)], gamma=0.9)
            self.chain = chain()

        def forward(self, x: Tensor) -> Tensor:
            return self.chain(self.first(x))

    net = mn.convert(Two(), rows(4), gamma=GAMMA, streams=["chain.blocks"], budget=4 * BUDGET, replan="auto")
    step(net, 64)
    blocks = {id(role.runner): role.runner for _, role in converted_blocks(net)}
    assert [stream.gamma for stream in blocks.values() if isinstance(stream, MomentumStream)] == [Fraction(1, 8)]
    assert net.first.gamma == pytest.approx(0.9)
