"""Unless gamma is given a plan takes momentum only where that is quicker, or where nothing else fits."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.core.passes import collectives
from momentumnet.planner.fit import measured_steps
from momentumnet.planner.plans.training_plan import TrainingPlan
from momentumnet.planner.profiles.profile import Profile
from momentumnet.planner.quickest import CLOSE, WORTH, quickest_plan
from momentumnet.planner.searching.options import Options
from momentumnet.planner.step_plans import MeasuredStep
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, Chain, ResidualMLP
from tests.planner.wide import chain, rows

GAMMAS = (Fraction(0), Fraction(1, 8))


def deep() -> tuple[nn.Module, torch.Tensor]:
    """Deep and narrow, so that inputs of blocks weigh most: a stream's state takes less."""
    torch.manual_seed(0)
    return Chain([ResidualMLP(16) for _ in range(64)]), torch.randn(256, 16)


def steps(model: nn.Module, x: torch.Tensor) -> list[MeasuredStep]:
    return measured_steps(model, x, gammas=GAMMAS)


def slower(step: MeasuredStep, times: float) -> MeasuredStep:
    """With blocks whose forward takes so many times as long."""
    profile: Profile = step.options.profile
    units = tuple(
        dataclasses.replace(
            unit, cost=dataclasses.replace(unit.cost, forward_seconds=times * unit.cost.forward_seconds)
        )
        for unit in profile.units
    )
    return dataclasses.replace(step, options=Options(dataclasses.replace(profile, units=units)))


def ways(plan: mn.TrainingPlan) -> set[str]:
    return {unit.way for unit in plan.units}


def test_the_function_stays_where_all_can_be_kept() -> None:
    model = chain()
    for options in ({"budget": 1 << 40}, {"spare": 1 << 40}):
        plan = mn.plan(model, rows(), **options)
        assert (plan.gamma, plan.streams, ways(plan)) == (0, (), {"stored"})
        assert plan.seconds == plan.stored_seconds
        assert [method.name for method in plan.methods] == ["stored", "checkpoint", "momentum"]
        net = mn.convert(model, rows(), **options)
        assert_same(train_step(net, (rows(),)), train_step(copy.deepcopy(model), (rows(),)), tolerance=0.0)


def test_momentum_where_nothing_else_fits() -> None:
    model, x = deep()
    unconverted, momentum = (step.least[0] for step in steps(model, x))
    assert momentum < 0.9 * unconverted
    budget = (momentum + unconverted) // 2
    plan = mn.plan(model, x, budget=budget)
    assert plan.gamma == Fraction(1, 8)
    assert "reversible" in ways(plan)
    assert mn.plan(model, x, budget="least").gamma == Fraction(1, 8)
    with pytest.raises(mn.ConversionError, match="no choice fits a budget"):
        mn.plan(model, x, gamma=0, budget=budget)
    assert mn.plan(model, x, budget=int(1.2 * unconverted)).gamma == 0  # where both fit, no momentum for its own sake


# So many blocks, and how much more the least at gamma 0 is predicted to take than at 1/8.
NEARLY_THE_SAME = [(7, 0.006), (6, -0.017)]


@pytest.mark.parametrize("more", [(0, 0), (0, 200_000), (200_000, 0)])
@pytest.mark.parametrize(("blocks", "apart"), NEARLY_THE_SAME)
def test_the_least_is_the_one_that_was_measured(blocks: int, apart: float, more: tuple[int, int]) -> None:
    """Of both values, where they are predicted to take nearly the same."""
    torch.manual_seed(0)
    model, x = Chain([ResidualMLP(16, 128) for _ in range(blocks)]), torch.randn(1024, 16)
    found, above = steps(model, x), dict(zip(GAMMAS, more, strict=True))
    assert found[0].least[0] / found[1].least[0] - 1 == pytest.approx(apart, abs=0.004)

    def trial(plan: TrainingPlan) -> int:
        return plan.peak + above[plan.gamma]

    least = min(step.plan(None, trial=trial).measured_peak or 0 for step in found)
    assert (quickest_plan(found, None, trial=trial).measured_peak or 0) <= least * (1 + CLOSE)
    with pytest.raises(mn.ConversionError, match=rf"The least is .*\({least} bytes\) as measured"):
        quickest_plan(found, least // 2, trial=trial)


def test_a_gamma_that_is_given_is_taken() -> None:
    for gamma in (0, 0.5):
        plan = mn.plan(chain(), rows(), gamma=gamma, budget=1 << 40)
        assert plan.gamma == Fraction(gamma)
        assert bool(plan.streams) == bool(gamma)


def test_several_processes_do_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them measures times of its own, and all have to train the same function."""
    for said, gamma in (("1", 0), ("", 0), ("2", Fraction(1, 8))):
        monkeypatch.setenv("WORLD_SIZE", said)  # as torchrun does, before processes have met
        assert mn.plan(chain(), rows(), budget=1 << 40).gamma == gamma
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(collectives, "processes", lambda: 2)
    assert mn.plan(chain(), rows(), budget=1 << 40).gamma == Fraction(1, 8)
    assert mn.plan(chain(), rows(), gamma=0, budget=1 << 40).gamma == 0


def test_the_quicker_one_of_those_that_fit() -> None:
    """And the network's own function where the times are nearly the same."""
    model, x = deep()
    unconverted, momentum = steps(model, x)
    limit = unconverted.least[0] * 6 // 5
    same = momentum.plan(limit).seconds / unconverted.plan(limit).seconds
    for share, chosen in ((1.5, 1), (1 + 0.7 * WORTH, 0), (0.9, 0)):
        times = 1.0
        while (quick := slower(unconverted, times)).plan(limit).seconds < share * momentum.plan(limit).seconds:
            times += 0.01 * same
        found = quickest_plan((quick, momentum), limit)
        assert found.gamma == GAMMAS[chosen]
        assert found.seconds == (quick, momentum)[chosen].plan(limit).seconds


def test_a_budget_that_nothing_fits_names_the_least_of_both() -> None:
    model, x = deep()
    with pytest.raises(mn.ConversionError) as auto:
        mn.plan(model, x, budget="1KiB")
    with pytest.raises(mn.ConversionError) as momentum:
        mn.plan(model, x, gamma=1 / 8, budget="1KiB")
    messages = [str(raised.value) for raised in (auto, momentum)]
    least = [message.partition("The least is ")[2].partition(" as measured")[0] for message in messages]
    assert least[0] == least[1] != ""


def test_bytes_to_spare_count_from_the_least_of_both() -> None:
    model, x = deep()
    least = mn.plan(model, x, budget="least").peak
    plan = mn.plan(model, x, spare=1000)
    assert plan.budget == pytest.approx(least + 1000, rel=0.01)
    assert plan.peak <= plan.budget


def test_a_network_that_keeps_all_is_a_converted_one(caplog: pytest.LogCaptureFixture) -> None:
    """It can be described, copied, made again, and reverted, as where something is recomputed."""
    model, x = chain(), rows()
    net = mn.convert(model, x, budget=1 << 40)
    description = mn.describe(net)
    assert (description["streams"], description["recomputed"]) == ([], [])
    again = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), mn.convert(model, like=description)]
    for other in again:
        assert mn.describe(other) == description
        with pytest.raises(mn.ConversionError, match="converted already"):
            mn.convert(other, x)
    mn.load_training_state(again[-1], mn.training_state(net))
    reverted = mn.revert(net)
    assert vars(reverted).keys() == vars(model).keys()
    with pytest.raises(mn.ConversionError, match="nothing to revert"):
        mn.revert(reverted)
    assert mn.convert(reverted, x).blocks is not None


def test_what_was_trained_stays_when_it_is_planned_again(caplog: pytest.LogCaptureFixture) -> None:
    """Also with a batch that only momentum would fit: another function in the middle of a training is no help."""
    model, x = deep()
    unconverted, momentum = (step.least[0] for step in steps(model, x))
    budget = (momentum + unconverted) // 2
    net = mn.convert(model, x[:16], budget=budget, replan="auto")
    assert mn.describe(net)["streams"] == []
    caplog.set_level(logging.INFO, "momentumnet")
    net(x[:64]).sum().backward()
    assert "planning again" in caplog.text
    assert mn.describe(net)["streams"] == []
    net(x).sum().backward()
    assert "The training goes on with the least" in caplog.text
    assert mn.describe(net)["streams"] == []


def test_a_velocity_to_begin_with_needs_a_plan_that_has_one() -> None:
    """At gamma 0 the module would be left out of the network, and out of what the optimizer is given."""
    model, x, start = chain(), rows(), nn.Linear(WIDTH, WIDTH)
    plan = mn.plan(model, x, budget=1 << 40)
    for velocity in (start, "branch"):
        for options in ({"example_inputs": x, "budget": 1 << 40}, {"plan": plan}):
            with pytest.raises(mn.ConversionError, match=r"initial_velocity was given.*gamma 0.*give gamma="):
                mn.convert(model, initial_velocity=velocity, **options)
    with pytest.raises(ValueError, match=r"initial_velocity must be None, 'branch' or an nn\.Module, got 'zero'"):
        mn.convert(model, plan=plan, initial_velocity="zero")
    net = mn.convert(model, x, gamma=1 / 8, budget=1 << 40, initial_velocity=start)
    assert any(parameter is start.weight for parameter in net.parameters())


def test_gamma_of_a_plan_without_streams_cannot_be_set() -> None:
    net = mn.convert(chain(), rows(), budget=1 << 40)
    for change in (lambda: mn.set_gamma(net, 0.5), lambda: mn.schedule_gamma(net, 3, 0, 0.5)):
        with pytest.raises(mn.ConversionError, match=r"converted by a plan without one.*give gamma="):
            change()
