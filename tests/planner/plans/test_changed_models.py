"""Models that are changed behind their plan: the bytes that were planned are not those of their steps any more."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.plans import parameter_bytes
from tests.contract.reference import assert_same, train_step
from tests.planner.wide import chain, rows

GAMMA = 1 / 8
TOLD = "follows a plan that was made for another model: "
ALL = "of parameters, not the 101 KiB planned. The step takes other bytes than"


def step(net: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    net(rows(16).to(dtype)).square().mean().backward()
    net.zero_grad(set_to_none=True)


def double(net: nn.Module) -> None:
    net.double()


def bfloat16(net: nn.Module) -> None:
    net.to(torch.bfloat16)


def with_adapter(net: nn.Module) -> None:
    assert isinstance(net.head, nn.Linear)
    net.head = nn.Sequential(net.head, nn.Linear(4, 4))


@pytest.mark.parametrize("budget", ["least", 1 << 20])
@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize(
    ("change", "told", "dtype"),
    [
        (double, f"it has 201 KiB {ALL}", torch.float64),
        (bfloat16, f"it has 50.4 KiB {ALL}", torch.bfloat16),
        (with_adapter, "(103200 bytes) of parameters, not the", torch.float32),
    ],
)
def test_it_is_told_once(
    change: Callable[[nn.Module], None],
    told: str,
    dtype: torch.dtype,
    calls: int,
    budget: int | str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget=budget)
    for _ in range(calls):
        step(net)
    assert not caplog.text
    change(net)
    for _ in range(4):
        step(net, dtype)
    assert caplog.text.count(TOLD) == 1
    assert told in caplog.text


def test_parameters_that_are_trained_from_then_on_are_told_of_and_frozen_ones_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = chain()
    model.head.requires_grad_(False)
    net = mn.convert(model, rows(16), gamma=GAMMA, budget=1 << 20)
    for part, trained in ((net.blocks, False), (net.blocks, True)):
        part.requires_grad_(trained)
        step(net)
    assert TOLD not in caplog.text
    net.head.requires_grad_(True)
    step(net)
    step(net)
    assert caplog.text.count(TOLD) == 1
    assert "of parameters that take a gradient, not the" in caplog.text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_watched(copied: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    net = copied(mn.convert(chain(), rows(16), gamma=GAMMA, budget="least")).double()
    step(net, torch.float64)
    assert TOLD in caplog.text


def test_parameters_in_parts_are_not_watched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """FSDP's are shards in one moment and whole in the next."""
    net = mn.convert(chain(), rows(16), gamma=GAMMA, budget="least")
    monkeypatch.setattr(parameter_bytes, "processes", lambda: 2)
    step(net.double(), torch.float64)
    assert TOLD not in caplog.text


def test_it_is_planned_again(caplog: pytest.LogCaptureFixture) -> None:
    model, x = chain(), rows(16)
    caplog.set_level("INFO", "momentumnet")
    budget = mn.plan(model, x, gamma=GAMMA, budget="least").peak * 5 // 4
    net = mn.convert(model, x, gamma=GAMMA, budget=budget, replan="auto").double()
    wide: Tensor = x.double()
    step(net, torch.float64)
    assert "planning again" in caplog.text
    assert TOLD not in caplog.text
    expected = mn.convert(model.double(), wide, gamma=GAMMA, backward="stored")
    assert_same(train_step(net, (wide,)), train_step(expected, (wide,)))
    net.zero_grad(set_to_none=True)
    found = mn.measure_memory(lambda: net(wide).square().mean().backward()).peak_bytes
    least = mn.plan(model, wide, gamma=GAMMA, budget="least").measured_peak
    assert found <= max(budget, least)
