"""Plans for a budget: what they predict is what is measured, they compute the same bits, and they say what they say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

import momentumnet as mn
from tests.contract.reference import assert_same, train_step
from tests.models import Chain, ResidualMLP
from tests.planner.networks import NETWORKS, built

GAMMA = 1 / 8


def measured(net: nn.Module, x: Tensor, *, autocast: bool = False) -> mn.MemoryReport:
    def step() -> None:
        for parameter in net.parameters():
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = net(x)
        output.sum().backward()

    step()
    for parameter in net.parameters():
        parameter.grad = None
    return mn.measure_memory(step)


def budgets(model: nn.Module, x: Tensor) -> list[int | str]:
    """The least, and two between it and what stored activations take."""
    plan = mn.plan(model, x, gamma=GAMMA, budget="least")
    low, high = plan.peak * 1.1, plan.stored_peak * 1.1
    return ["least", *(int(low + share * (high - low)) for share in (0.2, 0.6))]


@pytest.mark.parametrize(("name", "autocast"), [*((name, False) for name in NETWORKS), ("encoder", True)])
def test_predicted_peak_is_what_is_measured(name: str, autocast: bool) -> None:
    model, x = built(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        limits = budgets(model, x)
    for budget in limits:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plan = mn.plan(model, x, gamma=GAMMA, budget=budget)
        report = measured(mn.convert(model, plan=plan), x, autocast=autocast)
        assert plan.peak == pytest.approx(report.peak_bytes, rel=0.1)
        # While the test holds the output, it is there as well.
        held = sum(unit.held for unit in plan.units) + model(x).nbytes
        assert held == pytest.approx(report.saved_bytes, rel=0.1)
        assert budget == "least" or report.peak_bytes <= budget


def test_gradients_of_parameters_add_up_as_backward_goes() -> None:
    model, x = built("resnet18")
    plan = mn.plan(model, x, gamma=GAMMA, budget=1 << 40)
    later = sum(p.nbytes for layer in (model.layer2, model.layer3, model.layer4) for p in layer.parameters())
    assert [moment.phase for moment in plan.moments[-2:]] == ["backward", "backward"]
    assert plan.moments[-1].bytes > later
    assert plan.moments[0].bytes < later


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_stored(name: str) -> None:
    model, x = built(name)
    expected = train_step(
        mn.convert(model, x, gamma=GAMMA, backward="stored") if name != "plain" else copy.deepcopy(model), (x,)
    )
    for budget in budgets(model, x):
        net = mn.convert(model, x, gamma=GAMMA, budget=budget)
        for copied in (copy.deepcopy(net), net):
            assert_same(train_step(copied, (x,)), expected, tolerance=0.0)


def test_less_memory_takes_more_time_and_holds_less() -> None:
    model, x = built("encoder")
    plans = [mn.plan(model, x, gamma=GAMMA, budget=budget) for budget in (*budgets(model, x), 1 << 40)]
    assert plans[-1].seconds > plans[-1].stored_seconds  # by the steps of the streams' states
    assert {unit.way for unit in plans[-1].units} == {"stored"}
    kept = [sum(unit.way == "stored" for unit in plan.units) for plan in plans]
    assert kept == sorted(kept)
    assert plans[0].peak < plans[-1].peak
    assert all(plan.seconds > plan.stored_seconds for plan in plans[:1])


def test_a_plan_is_saved_loaded_and_followed(tmp_path: Path) -> None:
    model, x = built("encoder")
    plan = mn.plan(model, x, gamma=GAMMA, budget="least")
    plan.save(tmp_path / "plan.json")
    loaded = mn.TrainingPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    nets = [mn.convert(model, plan=made) for made in (plan, loaded)]
    assert mn.describe(nets[0]) == mn.describe(nets[1])
    plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(mn.ConversionError, match=r"other\.json holds no plan"):
        mn.TrainingPlan.load(tmp_path / "other.json")
    with pytest.raises(mn.ConversionError, match="made for another model"):
        mn.convert(resnet50(), plan=plan)


def test_plans_of_other_versions_are_read_or_refused(tmp_path: Path) -> None:
    model, x = built("encoder")
    path = tmp_path / "plan.json"
    plan = mn.plan(model, x, gamma=GAMMA, budget="least")
    plan.save(path)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in saved.items() if name != "gradients"}))
    assert mn.TrainingPlan.load(path) == plan
    without_units = {name: value for name, value in saved.items() if name != "units"}
    for other in ({**saved, "of_tomorrow": 1}, without_units, {**saved, "units": [{"names": ["0"]}]}):
        path.write_text(json.dumps(other))
        with pytest.raises(mn.ConversionError, match="plan again"):
            mn.TrainingPlan.load(path)


@pytest.mark.parametrize("budget", ["least", 1 << 40, None])
def test_a_converted_network_is_planned_as_what_it_was_or_not_at_all(budget: Any) -> None:
    """Its blocks keep no activations: taken for stored ones, their bytes would promise a peak that is none."""
    model, x = Chain([ResidualMLP() for _ in range(6)]), torch.randn(64, 16)
    for net in (mn.convert(model, x, gamma=0.9), mn.convert(model, x, budget=1 << 40)):
        if budget is None:
            assert str(mn.plan(net, x)) == str(mn.plan(model, x))
            continue
        with pytest.raises(mn.ConversionError, match=r"Chain is converted already.*momentumnet\.revert"):
            mn.plan(net, x, budget=budget)
        with pytest.raises(mn.ConversionError, match="converted already"):
            mn.largest_batch(net, lambda batch: torch.randn(batch, 16), "1MiB")


@pytest.mark.parametrize("gamma", [0, GAMMA])
def test_a_deeper_network_is_another_model(gamma: float, tmp_path: Path) -> None:
    """Of a plan for six blocks, the last four of ten would stay unconverted, and compute something else in silence."""
    torch.manual_seed(0)
    mn.plan(Chain([ResidualMLP() for _ in range(6)]), torch.randn(64, 16), gamma=gamma, budget="least").save(
        tmp_path / "plan.json"
    )
    plan = mn.TrainingPlan.load(tmp_path / "plan.json")
    deeper = Chain([ResidualMLP() for _ in range(10)])
    with pytest.raises(mn.ConversionError, match=r"made for another model: 'blocks' has 10 modules, and had 6; plan a"):
        mn.convert(deeper, plan=plan, inplace=True)
    assert mn.convert(deeper, torch.randn(2, 16)).blocks is not None  # nothing of it is converted


def test_a_budget_that_is_too_small_says_what_is_needed() -> None:
    model, x = built("encoder")
    least = r"The least is .*B \(\d+ bytes\) as measured, for"
    with pytest.raises(mn.ConversionError, match=rf"no choice fits a budget of 1\.00 MiB\. {least}"):
        mn.convert(model, x, budget="1MiB")


@pytest.mark.parametrize("budget", ["4", "4 bytes", 0, -1, True, 1.5, "", "0GiB"])
def test_what_a_budget_may_be(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"budget must be a positive number of bytes.*got"):
        mn.plan(Chain([ResidualMLP()] * 2), torch.randn(2, 16), budget=budget)


@pytest.mark.parametrize("option", [{"others": "checkpoint"}, {"backward": "stored"}])
def test_options_that_a_plan_chooses(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(option))}"):
        mn.plan(Chain([ResidualMLP(), ResidualMLP()]), torch.randn(2, 16), budget="least", **option)


def test_what_is_the_least_within_a_budget_is_the_time() -> None:
    model, x = built("encoder")
    plans = [mn.plan(model, x, gamma=GAMMA, budget="least", **option) for option in ({}, {"objective": "time"})]
    assert plans[0].peak == plans[1].peak
    with pytest.raises(ValueError, match="objective must be 'time', got 'energy'"):
        mn.plan(model, x, budget="least", objective="energy")


def test_a_plan_says_all_the_rest() -> None:
    model, x = built("encoder")
    plan = mn.plan(model, x, gamma=GAMMA, budget="least")
    with pytest.raises(mn.ConversionError, match=r"plan= says how .* gamma was given, too"):
        mn.convert(model, plan=plan, gamma=0.9)


def test_example_inputs_beside_a_plan_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    model, x = built("encoder")
    plan = mn.plan(model, x, gamma=GAMMA, budget="least")
    assert mn.describe(mn.convert(model, x, plan=plan)) == mn.describe(mn.convert(model, plan=plan))
    assert not caplog.records
    larger = torch.cat([x, x])
    converted = mn.convert(model, larger, plan=plan)
    (record,) = caplog.records
    assert f"was planned for inputs of {x.numel()} elements and is given {larger.numel()}" in record.getMessage()
    converted(larger)
    assert caplog.records == [record]  # it has been said


def test_the_model_is_left_as_it_was() -> None:
    model, x = built("resnet18")
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    mn.plan(model, x, gamma=GAMMA, budget="least", loss=lambda output: output.square().mean())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
