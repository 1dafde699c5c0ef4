"""A fine-tuning of ``bench gamma-schedule``: the rule of each of its steps, and the memory that it reports."""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.data.byte_windows import ByteWindows, windows
from momentumnet.bench.data.images import load_digits
from momentumnet.bench.gamma_schedule import training as module
from momentumnet.bench.gamma_schedule.annealing import METHODS
from momentumnet.bench.gamma_schedule.plots import _lines
from momentumnet.bench.gamma_schedule.tasks import ImageTask, Recipe, Task, TextTask, first_half
from momentumnet.bench.gamma_schedule.training import Training
from momentumnet.bench.measuring.probe import step_memory
from momentumnet.bench.trainings.language_training import TextCourse
from momentumnet.memory import MemoryReport
from momentumnet.streams.blocks.converted import streams_of

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05, text_lr=1e-3, pretraining_epochs=1)
CPU = torch.device("cpu")
START = Fraction(1, 8)
STEPS = 8  # two epochs of 4 batches, each 8 of 36 windows


def text_task() -> TextTask:
    before, data = (windows("numbers", bytes(range(start, 160 + start)) * 2, 8) for start in (0, 90))
    return TextTask("decoder2", RECIPE, CPU, before, data)


def training(method: str, final: str, length: str, task: Task[Any] | None = None, *, shape: str = "linear") -> Training:
    annealing = METHODS[method](START, Fraction(final), Fraction(length), shape)
    return Training(task or text_task(), annealing, seed=1)


def rule_of(model: nn.Module) -> tuple[float, float]:
    """Gamma twice, or alpha and beta."""
    (stream,) = streams_of(model)
    found = getattr(stream, "rule", None)
    return (float(stream.gamma),) * 2 if found is None else (float(found.alpha), float(found.beta))


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The rule of each step of trainings that follow, and of the network that is measured behind them."""
    seen: list[tuple[float, float]] = []
    evaluated = Training._memory

    def watched(self: Training, model: nn.Module, schedule: Any) -> dict[str, Any]:
        seen.append(rule_of(model))
        return evaluated(self, model, schedule)

    step = torch.optim.AdamW.step

    def stepped(self: Any, closure: Any) -> Any:
        (net,) = (cell.cell_contents for cell in closure.__closure__ if isinstance(cell.cell_contents, nn.Module))
        if streams_of(net):
            seen.append(rule_of(net))
        return step(self, closure)

    monkeypatch.setattr(Training, "_memory", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    return seen


@pytest.mark.parametrize("length", ["0", "1/4", "1"])
@pytest.mark.parametrize(("method", "final"), [("momentum", "9/10"), ("momentum", "0"), ("dr2net", "3/4")])
def test_the_rule_goes_linearly_to_its_end_and_stays_there(
    rules: list[tuple[float, float]], method: str, final: str, length: str
) -> None:
    row = training(method, final, length).row()
    assert "error" not in row, row
    last = float(Fraction(final))
    start, end = ((1 / 8, 1 / 8), (last, last)) if method == "momentum" else ((1, 1 / 64), (1 - last, last))
    changing = STEPS * float(Fraction(length))
    shares = [min(step / changing, 1.0) if changing else 1.0 for step in range(STEPS + 1)]
    assert len(rules) == STEPS + 1
    for share, found in zip(shares, rules, strict=True):
        wanted = [one + share * (other - one) for one, other in zip(start, end, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-9 if share in (0, 1) else 1 / 90)


@pytest.mark.parametrize("method", ["momentum", "dr2net"])
def test_a_geometric_way_multiplies_from_step_to_step(rules: list[tuple[float, float]], method: str) -> None:
    row = training(method, "3/4", "1", shape="geometric").row()
    assert "error" not in row, row
    start = 1 / 8 if method == "momentum" else 1 / 64
    wanted = [start * (0.75 / start) ** (step / STEPS) for step in range(STEPS + 1)]
    assert [found for _, found in rules] == pytest.approx(wanted, abs=1 / 90)
    assert abs(rules[STEPS // 2][1] - (start + 0.75) / 2) > 1 / 10  # where a linear one is


def test_memory_is_that_of_the_stock_network_at_0_and_less_reversibly() -> None:
    task = text_task()
    at_once, slowly, back = (
        training(*case, task).row()
        for case in (("momentum", "0", "0"), ("momentum", "9/10", "1"), ("momentum", "0", "1"))
    )
    stock = task.pretrained(1, lambda: None).train()
    tokens, _ = task.batch
    expected = step_memory(stock, lambda net: net(tokens).mean().backward())
    assert at_once["saved_bytes"] == at_once["most_saved_bytes"] == expected.saved_bytes
    assert at_once["peak_bytes"] == expected.peak_bytes
    assert slowly["saved_bytes"] < at_once["saved_bytes"]
    assert slowly["saved_bytes"] <= slowly["most_saved_bytes"]  # a small gamma takes more bits a block
    assert back["most_saved_bytes"] == back["saved_bytes"]  # stored activations, at the end, take the most


@pytest.mark.parametrize("method", ["momentum", "dr2net"])
def test_most_memory_is_the_largest_of_beginning_middle_and_end(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    measured: list[tuple[float, float]] = []

    def step_memory_of_rule(model: nn.Module, step: Any) -> MemoryReport:
        measured.append(rule_of(model))
        size = 100 * len(measured) % 250  # 100 at the end, then 200 and 50
        return MemoryReport(**{field.name: size for field in fields(MemoryReport)})

    monkeypatch.setattr(module, "step_memory", step_memory_of_rule)
    row = training(method, "3/4", "1").row()
    names = ("peak_bytes", "saved_bytes", "most_peak_bytes", "most_saved_bytes")
    assert [row[name] for name in names] == [100, 100, 200, 200]
    ends = ((1 / 8, 1 / 8), (3 / 4, 3 / 4)) if method == "momentum" else ((1, 1 / 64), (1 / 4, 3 / 4))
    middle = [sum(pair) / 2 for pair in zip(*ends, strict=True)]
    assert measured[:2] == [ends[1], ends[0]]
    assert measured[2] == pytest.approx(middle, abs=1 / 90)


def test_texts_orders_and_rates_are_those_of_the_seed_in_both_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    rates: list[float] = []
    batches, step, loss = ByteWindows.train_batches, torch.optim.AdamW.step, TextCourse.evaluate
    evaluated: list[str] = []

    def recorded(self: ByteWindows, size: int, seed: int) -> Any:
        seen.append((self.name, seed))
        return batches(self, size, seed)

    def stepped(self: Any, closure: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    def looked(self: TextCourse, model: nn.Module) -> None:
        evaluated.append(self.data.name)  # type: ignore[attr-defined]
        loss(self, model)

    monkeypatch.setattr(ByteWindows, "train_batches", recorded)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    monkeypatch.setattr(TextCourse, "evaluate", looked)
    before, data = (windows(name, bytes(range(160)) * 2, 8) for name in ("first", "second"))
    training("momentum", "1/2", "1", TextTask("decoder2", RECIPE, CPU, before, data)).row()
    assert seen == [("first", 1_000_000), ("second", 1_000_000), ("second", 1_000_001)]
    assert evaluated == ["first", "second", "second"]
    expected = [(1 + math.cos(math.pi * step / steps)) / 2000 for steps in (4, 8) for step in range(steps)]
    assert rates == pytest.approx(expected)


def test_score_is_that_behind_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTask, "scores", lambda self, course: [3.0, 1.0, 2.0])
    assert training("momentum", "1/2", "0").row()["score"] == 2.0


def test_fine_tuning_begins_with_the_pretrained_network_of_the_seed() -> None:
    task = text_task()
    first = task.pretrained(1, lambda: None)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    assert task.is_pretrained(1)
    training("dr2net", "1/2", "1/4", task).row()
    assert task.pretrained(1, lambda: None) is first
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    again = text_task().pretrained(1, lambda: None).state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())
    other = task.pretrained(2, lambda: None).state_dict()
    assert not torch.equal(other["tokens.weight"], before["tokens.weight"])


def test_a_resnet_is_pretrained_on_half_of_the_classes_and_gets_a_head_for_all() -> None:
    data = load_digits().part(train=40, test=20)
    half = first_half(data)
    assert set(half.y_train.tolist()) == set(range(5))
    assert len(half.x_train) == int((data.y_train < 5).sum())
    task = ImageTask("resnet14_bn", RECIPE, CPU, data)
    epochs: list[int] = []
    model = task.pretrained(0, lambda: epochs.append(1))
    assert epochs == [1]
    assert model(task.example).shape == (8, 10)
    row = training("momentum", "1/2", "1", task).row()
    assert "error" not in row, row
    assert (len(row["scores"]), row["score"]) == (2, row["scores"][-1])


def test_the_start_stands_on_the_lines_of_all_lengths() -> None:
    places = [("1/8", "0", 1.0), ("1/2", "0", 2.0), ("1/2", "1/4", 3.0), ("1/2", "1/4", 5.0)]
    rows = [{"final": final, "length": length, "score": score} for final, length, score in places]
    assert _lines(rows, "score", 1) == {"0": {0.125: [1.0], 0.5: [2.0]}, "1/4": {0.125: [1.0], 0.5: [3.0, 5.0]}}
