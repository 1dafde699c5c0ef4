"""Memory to spare, in bytes: the plan, what is held, and the peak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.core.exact_state import ExactState
from tests.contract.reference import assert_same, loss_of, train_step
from tests.contract.test_ends import TwoStreams, rows
from tests.contract.test_spare import DEPTH, EVERYTHING, bytes_of_last, chain, converted
from tests.models import WIDTH, Chain


@pytest.mark.parametrize("kept", [0, 1, 3, DEPTH])
def test_memory_is_what_the_plan_says(kept: int) -> None:
    spare = bytes_of_last(chain(), rows(), kept)
    plan = mn.plan(chain(), rows(), spare=spare)
    assert plan.kept == [kept]
    reports = []
    for bytes_ in (0, spare):
        net = mn.convert(chain(), rows(), spare=bytes_)
        loss_of(net(rows())).backward()
        reports.append(mn.measure_memory(lambda net=net: loss_of(net(rows())).backward()))
    assert reports[1].saved_bytes <= reports[0].saved_bytes + spare
    assert reports[1].peak_bytes <= reports[0].peak_bytes + spare
    planned = plan.saved_after - mn.plan(chain(), rows()).saved_after
    assert abs(reports[1].saved_bytes - reports[0].saved_bytes - planned) <= 0.1 * reports[0].saved_bytes
    assert (reports[1].saved_bytes > reports[0].saved_bytes) == bool(kept)


@pytest.mark.parametrize("stages", [0, 1, 2, 4])
def test_memory_of_kept_modules_is_what_the_plan_says(stages: int) -> None:
    spare = bytes_of_last(TwoStreams(), rows(), stages, "checkpoint")
    planned, held = [], []
    for bytes_ in (0, spare):
        net = mn.convert(TwoStreams(), rows(), others="checkpoint", spare=bytes_)
        planned.append(mn.plan(TwoStreams(), rows(), others="checkpoint", spare=bytes_).saved_after)
        held.append(mn.measure_memory(lambda net=net: net(rows())).saved_bytes)
    assert abs((planned[1] - planned[0]) - (held[1] - held[0])) <= 0.1 * held[0]


@pytest.mark.parametrize("spare", [0, EVERYTHING])
def test_without_a_velocity_there_is_no_state_to_count(spare: int) -> None:
    plan = mn.plan(chain(), rows(), gamma=0, spare=spare)
    assert plan.saved_after == plan.saved_before
    net = mn.convert(chain(), rows(), gamma=0, spare=spare)
    assert torch.equal(net(rows()), chain()(rows()))
    mn.set_gamma(net, 1 / 2)
    assert plan.kept == [DEPTH if spare else 0]
    expected = train_step(mn.convert(chain(), rows(), gamma=1 / 2, backward="stored"), (rows(),))
    assert_same(train_step(net, (rows(),)), expected)


def test_one_byte_less_keeps_one_block_less() -> None:
    needed = bytes_of_last(chain(), rows(), 3)
    assert [mn.plan(chain(), rows(), spare=needed - less).kept for less in (0, 1)] == [[3], [2]]


def test_modules_outside_count_and_are_kept_in_their_turn() -> None:
    model = TwoStreams()
    assert mn.plan(model, rows(), others="checkpoint").recomputed == [("behind",)]
    behind = bytes_of_last(model, rows(), 1, "checkpoint")
    for less, recomputed, kept in ((1, [("behind",)], [0]), (0, [], [0])):
        plan = mn.plan(model, rows(), others="checkpoint", spare=behind - less)
        assert (plan.recomputed, plan.kept) == (recomputed, kept)
    both = bytes_of_last(model, rows(), 2, "checkpoint")
    plan = mn.plan(model, rows(), others="checkpoint", spare=both)
    assert (plan.recomputed, plan.kept) == ([], [1])
    # The module's activations stay anyway where others are kept: all bytes go to the blocks.
    assert mn.plan(model, rows(), spare=both - behind).kept == [1]


def test_a_stream_that_is_kept_whole_puts_no_state_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[ExactState] = []
    fork = ExactState.fork
    monkeypatch.setattr(ExactState, "fork", lambda state: forks.append(state) or fork(state))
    for kept, expected in ((DEPTH - 1, 1), (DEPTH, 0)):
        loss_of(converted(chain(), rows(), kept)(rows())).backward()
        assert len(forks) == expected
        forks.clear()


class Thin(nn.Module):
    """Keeps nothing but its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Skipping(Chain):
    """Leaves out a block, if asked for."""

    skipped: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, block in enumerate(self.blocks):
            x = x if place == self.skipped else block(x)
        return self.head(x)


@pytest.mark.parametrize("skipped", [None, 0, DEPTH - 2, DEPTH - 1])
@pytest.mark.parametrize("gamma", [0.9, 0.5, 1 / 8])
def test_the_peak_grows_by_no_more(gamma: float, skipped: int | None) -> None:
    x = rows().repeat(16, 1)
    model = Skipping([Thin() for _ in range(DEPTH)])
    least, *spared = (
        mn.plan(model, x, gamma=gamma, spare=spare) for spare in (0, *(count * x.nbytes for count in range(1, 8)))
    )
    reports = []
    for plan in (least, *spared):
        net = mn.convert(model, x, gamma=gamma, spare=plan.spare)
        net.skipped = skipped
        loss_of(net(x)).backward()
        reports.append(mn.measure_memory(lambda net=net: loss_of(net(x)).backward()))
    assert spared[-1].kept[0] > 1
    for plan, report in zip(spared, reports[1:], strict=True):
        assert report.peak_bytes <= reports[0].peak_bytes + plan.spare
        assert report.saved_bytes <= reports[0].saved_bytes + plan.spare


def test_the_printed_plan_tells_how_many_are_kept() -> None:
    needed = bytes_of_last(chain(), rows(), 2)
    assert "2 of 6 blocks keep" in str(mn.plan(chain(), rows(), spare=needed))
    assert "keep their activations" not in str(mn.plan(chain(), rows()))


@pytest.mark.parametrize("spare", [-1, 1.5, True, "2GiB", None])
def test_what_is_no_number_of_bytes_is_refused(spare: Any) -> None:
    with pytest.raises(ValueError, match="spare must be a number of bytes"):
        mn.convert(chain(), rows(), spare=spare)


def test_where_there_is_nothing_to_choose_it_is_refused() -> None:
    with pytest.raises(ValueError, match="backward='stored' keeps all"):
        mn.convert(chain(), rows(), spare=1, backward="stored")
    with pytest.raises(mn.ConversionError, match="spare needs example_inputs"):
        mn.convert(chain(), streams=["blocks"], spare=1)


def test_without_memory_to_spare_a_block_that_kept_nothing_in_eval_mode_is_recomputed_too() -> None:
    class Dropped(nn.Module):
        """Keeps its mask, in training."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.dropout(self.inner(x))

    model = chain(Dropped)
    assert bytes_of_last(model, rows(), DEPTH) == 0
    assert mn.plan(model, rows()).kept == [0]
