"""Bytes to spare: a budget of the least that there is and so many bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.models import WIDTH, Chain

DEPTH = 6


class Thin(nn.Module):
    """Keeps nothing but its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Wide(Thin):
    """Keeps more than the stream's state takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def chain(block: Callable[[], nn.Module] = Wide) -> Chain:
    torch.manual_seed(7)
    return Chain([block() for _ in range(DEPTH)])


def rows() -> Tensor:
    return torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(1))


def report(net: nn.Module) -> mn.MemoryReport:
    loss_of(net(rows())).backward()
    net.zero_grad(set_to_none=True)
    return mn.measure_memory(lambda: loss_of(net(rows())).backward())


def test_it_is_a_budget() -> None:
    least = mn.plan(chain(), rows(), budget="least")
    spared = mn.plan(chain(), rows(), spare=100_000)
    assert spared.budget == least.peak + 100_000
    assert least.peak < spared.peak <= spared.budget
    assert {unit.way for unit in mn.plan(chain(), rows(), spare=1 << 30).units} == {"stored"}
    assert mn.plan(chain(), rows(), budget="least", spare=100_000).budget == spared.budget


@pytest.mark.parametrize("gamma", [0.9, 0.5, 1 / 8])
@pytest.mark.parametrize("block", [Thin, Wide])
def test_the_peak_grows_by_no_more(block: type[Thin], gamma: float) -> None:
    reports, kept = [], []
    sizes = [count * rows().nbytes for count in (0, 1, 3, 5, 7)]
    for spare in sizes:
        net = mn.convert(chain(block), rows(), gamma=gamma, **({"spare": spare} if spare else {"budget": "least"}))
        kept.append(mn.describe(net)["streams"][0]["kept"])
        reports.append(report(net))
    assert kept[-1] > kept[0]
    for spare, found in zip(sizes, reports, strict=True):
        assert found.peak_bytes <= 1.02 * reports[0].peak_bytes + spare  # a plan is not tried out for this


@pytest.mark.parametrize("spare", [-1, 1.5, True, "2GiB", None])
def test_what_is_no_number_of_bytes_is_refused(spare: Any) -> None:
    for call in (mn.convert, mn.plan):
        with pytest.raises(ValueError, match="spare must be a number of bytes"):
            call(chain(), rows(), spare=spare)


@pytest.mark.parametrize("option", [{"others": "checkpoint"}, {"backward": "stored"}])
def test_what_the_plan_chooses_is_not_given(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"with bytes to spare, .* leave out {next(iter(option))}"):
        mn.convert(chain(), rows(), spare=1, **option)


def test_another_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spare=1 is a budget of the least .* budget='1GiB' another one"):
        mn.convert(chain(), rows(), spare=1, budget="1GiB")


def test_without_example_inputs_there_is_no_step() -> None:
    with pytest.raises(mn.ConversionError, match="need example_inputs"):
        mn.convert(chain(), streams=["blocks"], spare=1)
