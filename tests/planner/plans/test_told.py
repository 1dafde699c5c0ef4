"""Inputs that were not planned for are told of: larger ones, of another autocast, in several processes."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.planner.plans import batch_watch
from tests.models import WIDTH, ResidualMLP
from tests.planner.plans.larger_batches import BUDGET, GAMMA, TOLD, step, ways
from tests.planner.wide import chain, rows


def test_a_larger_batch_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget=BUDGET)
    for batch in (16, 4):
        step(net, batch)
    with torch.no_grad():
        net(rows(64))
    assert TOLD not in caplog.text
    for _ in range(3):
        step(net, 32)
    assert caplog.text.count(TOLD) == 1
    assert f"{16 * WIDTH} elements and is given {32 * WIDTH}" in caplog.text
    assert "Plan again for the largest batch" in caplog.text


def cast(dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@pytest.mark.parametrize(
    ("planned", "trained"),
    [(torch.bfloat16, None), (None, torch.bfloat16), (torch.bfloat16, torch.float16)],
    ids=["without", "with", "another"],
)
def test_another_autocast_than_planned_is_told_once(
    planned: torch.dtype | None, trained: torch.dtype | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = nn.Sequential(*(ResidualMLP() for _ in range(3))), rows(16)
    with cast(planned):
        mn.plan(model, x, budget=1 << 20).save(tmp_path / "plan.json")
    converted = mn.convert(model, plan=mn.TrainingPlan.load(tmp_path / "plan.json"))
    with torch.no_grad():
        converted(x)  # an evaluation keeps nothing
    with cast(planned):
        converted(x)
    assert not caplog.text
    for _ in range(2):
        with cast(trained):
            converted(x)
    assert len(caplog.records) == 1
    assert re.search(r"takes other bytes than the 1.00 MiB planned. Plan .* as it is trained", caplog.text)


def test_a_plan_that_does_not_know_of_autocast_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """One on the meta device, where there is none, or of a version that did not say."""
    model, x = nn.Sequential(*(ResidualMLP() for _ in range(3))), rows(16)
    plan = mn.plan(copy.deepcopy(model).to("meta"), x.to("meta"), budget=1 << 20)
    assert plan.autocast is None
    with cast(torch.bfloat16):
        mn.convert(model, plan=plan)(x)
    assert not caplog.text


def test_a_plan_that_was_loaded_knows_its_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mn.plan(chain(), rows(16), budget="least").save(tmp_path / "plan.json")
    net = mn.convert(chain(), plan=mn.TrainingPlan.load(tmp_path / "plan.json"))
    step(net, 17)
    assert "takes more than the least that was planned" in caplog.text


def test_several_processes_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=BUDGET, replan="auto")
    monkeypatch.setattr(batch_watch, "processes", lambda: 2)
    net(rows(64))
    assert "In several processes it is not planned again" in caplog.text
    assert ways(net)[1] == 6


@pytest.mark.parametrize("budget", [BUDGET, 1 << 40])
@pytest.mark.parametrize("replan", ["never", "auto"])
def test_a_trace_of_a_larger_batch_is_no_step(budget: int, replan: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "momentumnet")
    net = mn.convert(chain(), rows(4), gamma=GAMMA, budget=budget, replan=replan)
    before = mn.describe(net)
    for look in (mn.find_streams, mn.plan):
        look(net, rows(64))
    assert "planned" not in caplog.text
    assert "planning again" not in caplog.text
    assert mn.describe(net) == before
    step(net, 64)
    assert (TOLD if replan == "never" else "planning again") in caplog.text
