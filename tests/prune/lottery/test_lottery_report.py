from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from momentumnet.prune import LotteryReport, LotteryTicket, TicketTraining
from tests.prune.lottery.lotteries import network, train


def training(**changed: object) -> TicketTraining:
    record = {
        "initial": {"w": torch.tensor([[1.0, -2.0], [3.0, -4.0]]), "b": torch.tensor([5.0])},
        "masks": {"w": torch.tensor([[True, False], [True, True]])},
        "steps": 30,
        "accuracies": [(10, 0.5), (20, 0.75), (30, 0.75)],
        "distances": [],
        "seconds": 2.0,
        **changed,
    }
    return TicketTraining.from_record("ticket", 1, record)


def test_numbers_of_a_training() -> None:
    ticket = training()
    assert (ticket.kept, ticket.total, ticket.sparsity) == (3, 4, 0.25)
    assert (ticket.best, ticket.best_step, ticket.final) == (0.75, 20, 0.75)
    assert ticket.kept_norm == pytest.approx((1 + 3 + 4) / 3)
    assert ticket.removed_norm == 2


def test_training_without_evaluation() -> None:
    ticket = training(accuracies=[])
    assert (ticket.best, ticket.best_step, ticket.final) == (None, None, None)
    assert " - " in str(LotteryReport((ticket,)))


def test_dense_network_has_no_removed_weights() -> None:
    ticket = training(masks={"w": torch.ones(2, 2, dtype=torch.bool)})
    assert ticket.kept_norm == 2.5
    assert math.isnan(ticket.removed_norm)


def test_table_has_a_line_for_each_training() -> None:
    table = str(LotteryReport((training(), training(accuracies=[(10, 0.25)]))))
    header, first, second = table.splitlines()
    assert header.split()[:3] == ["round", "sparsity", "weights"]
    assert first.split() == ["1", "25.00", "%", "3", "ticket", "0.75", "0.75", "20", "2.667", "2"]
    assert second.split()[5:8] == ["0.25", "0.25", "10"]


def test_values_are_plain() -> None:
    (values,) = LotteryReport((training(),)).values()
    assert values["sparsity"] == 0.25
    assert values["accuracies"] == ((10, 0.5), (20, 0.75), (30, 0.75))
    assert values["best_step"] == 20


def test_plot(tmp_path: Path) -> None:
    report = LotteryTicket(network(), train, rounds=2, controls=["reinitialised", "random mask"]).run()
    report.plot(tmp_path / "lottery.png")
    assert (tmp_path / "lottery.png").stat().st_size > 10_000


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install momentumnet\[cli\]"):
        LotteryReport((training(),)).plot(tmp_path / "lottery.png")
