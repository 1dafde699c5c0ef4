"""A plan that a model follows which is not the one that it was made for: refused, or told."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize

import momentumnet as mn
from momentumnet.planner.plans.training_plan import TrainingPlan
from tests.contract.reference import assert_same, train_step
from tests.models import WIDTH, Chain
from tests.planner.wide import Wide, chain, rows

GAMMA = 1 / 8


class Plain(nn.Module):
    """The parameters of `Wide`, and no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Wide().inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Derived(Wide):
    pass


def saved_and_loaded(plan: TrainingPlan, folder: Path) -> TrainingPlan:
    plan.save(folder / "plan.json")
    return TrainingPlan.load(folder / "plan.json")


def test_blocks_of_another_class_do_not_move_by_the_rule(tmp_path: Path) -> None:
    """Without a skip they would compute something else by it, which nobody has planned."""
    plan = saved_and_loaded(mn.plan(chain(), rows(), budget="least", gamma=GAMMA), tmp_path)
    assert plan.streams
    with pytest.raises(mn.ConversionError, match=r"another model: 'blocks\.0', .* of class Plain, .*Wide.*plan again"):
        mn.convert(Chain([Plain() for _ in range(6)]), plan=plan)
    model = Chain([Derived() for _ in range(6)])
    expected = train_step(mn.convert(model, rows(), gamma=GAMMA, backward="stored"), (rows(),))
    assert_same(train_step(mn.convert(model, plan=plan), (rows(),)), expected, tolerance=0.0)
    mn.convert(Chain([Plain() for _ in range(6)]), plan=replace(plan, classes=()))  # of a version that did not say


@pytest.mark.parametrize("wrap", [functools.partial(torch.compile, backend="eager"), checkpoint_wrapper])
def test_wrapped_blocks_compute_what_they_did(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = saved_and_loaded(mn.plan(chain(), rows(), budget="least", gamma=GAMMA), tmp_path)
    model = chain()
    expected = train_step(mn.convert(model, plan=plan), (rows(),))
    wrapped = copy.deepcopy(model)
    for number in range(len(wrapped.blocks)):
        wrapped.blocks[number] = wrap(wrapped.blocks[number])
    output = train_step(mn.convert(wrapped, plan=plan, inplace=True), (rows(),)).output
    assert torch.equal(output, expected.output)
    assert "another model" not in caplog.text
    wrapped = Chain([wrap(Plain()) for _ in range(6)])
    with pytest.raises(mn.ConversionError, match=r"of class Plain, and were of class Wide in the plan"):
        mn.convert(wrapped, plan=plan)


class Scaled(Wide):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


def test_a_plan_of_parametrized_blocks() -> None:
    """Their class is one that PyTorch has made of theirs."""
    model = Chain([Scaled() for _ in range(6)])
    for block in model.blocks:
        parametrize.register_parametrization(block, "scale", nn.Softplus())
    plan = mn.plan(model, rows(), budget="least", gamma=GAMMA)
    assert plan.streams
    mn.convert(model, plan=plan)
    mn.convert(Chain([Scaled() for _ in range(6)]), plan=plan)


def test_at_gamma_0_every_class_computes_what_it_did_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = Chain([*(Wide() for _ in range(5)), Plain()])
    net = mn.convert(model, plan=mn.plan(chain(), rows(), budget="least", gamma=0))
    assert "'blocks.5' is of class Plain, and was of class Wide in the plan" in caplog.text
    assert "other bytes than the least that was planned; plan again" in caplog.text
    assert_same(train_step(net, (rows(),)), train_step(model, (rows(),)))


def halved(model: nn.Module) -> nn.Module:
    return model.bfloat16()


def frozen(model: nn.Module) -> nn.Module:
    model.blocks[:3].requires_grad_(False)
    return model


@pytest.mark.parametrize("budget", ["least", 1 << 20])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (halved, "it has 50.4 KiB of parameters, not the 101 KiB planned. The step takes other bytes"),
        (frozen, "it has 51.0 KiB of parameters that take a gradient, not the 101 KiB planned. The step takes"),
    ],
)
def test_other_parameters_are_told_either_way(
    change: Callable[[nn.Module], nn.Module],
    told: str,
    budget: int | str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Narrower, of another type, or frozen: it takes other bytes, and might keep more in them."""
    single, changed = chain(), change(chain())
    plan = saved_and_loaded(mn.plan(single, rows(), budget=budget, gamma=GAMMA), tmp_path)
    mn.convert(single, plan=plan)
    assert not caplog.text
    mn.convert(changed, plan=plan)
    assert told in caplog.text
    assert "plan again (momentumnet.plan) with this model" in caplog.text
    caplog.clear()
    mn.convert(single, plan=mn.plan(changed, rows().to(changed.stem.weight.dtype), budget=budget, gamma=GAMMA))
    assert len(caplog.records) == 1


def test_bytes_that_are_the_same_when_they_are_rounded(caplog: pytest.LogCaptureFixture) -> None:
    model = Chain([Wide() for _ in range(24)])
    plan = mn.plan(model, rows(), budget=1 << 22, gamma=GAMMA)
    model.head = nn.Linear(WIDTH, 5)
    mn.convert(model, plan=plan)
    total = sum(4 * parameter.numel() for parameter in model.parameters())
    assert f"({total} bytes) of parameters, not the " in caplog.text
    assert f"({total - 4 * (WIDTH + 1)} bytes) planned. " in caplog.text


def test_a_plan_of_a_version_that_did_not_say(caplog: pytest.LogCaptureFixture) -> None:
    plan = mn.plan(chain(), rows(), budget="least", gamma=GAMMA)
    mn.convert(chain().bfloat16(), plan=replace(plan, parameter_bytes=0, trained_bytes=None, classes=()))
    assert not caplog.text
