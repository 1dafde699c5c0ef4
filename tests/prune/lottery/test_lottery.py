"""A lottery's tickets against a loop that is written out, and what its trainings begin with and leave alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import CheckpointError
from momentumnet.prune import LotteryTicket, TrainingLog, dense_state_dict
from momentumnet.streams.blocks.converted import streams_of
from tests.prune.lottery.lotteries import STEPS, X, Y, network, train

SHAPES = {"0.weight": (12, 6), "2.weight": (4, 12)}


def by_hand(first: dict[str, Tensor], masks: dict[str, Tensor], start: int) -> list[dict[str, Tensor]]:
    """The weights after each step of SGD with momentum and decay; layers written out, masks multiplied in."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in first.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
    course = [{name: tensor.detach().clone() for name, tensor in weights.items()}]
    for _ in range(start, STEPS):
        w0, w2 = (weights[name] * masks[name] for name in SHAPES)
        hidden = torch.tanh(X @ w0.T + weights["0.bias"])
        loss = (hidden @ w2.T + weights["2.bias"] - Y).square().mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                velocity[name] = 0.9 * velocity[name] + gradient + 0.01 * weight
                weight -= 0.1 * velocity[name]
                if name in masks:
                    weight *= masks[name]
        course.append({name: tensor.detach().clone() for name, tensor in weights.items()})
    return course


def prune_by_hand(weights: dict[str, Tensor], masks: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """All magnitudes of the weights that are left in one sorted list; the smallest go."""
    left = sorted(float(value) for name in SHAPES for value in weights[name][masks[name]].abs())
    threshold = left[int(fraction * len(left) + 0.5)]
    return {name: masks[name] & (weights[name].abs() >= threshold) for name in SHAPES}


@pytest.mark.parametrize("rewind_to", [0, 3])
def test_finds_the_tickets_of_a_loop_written_out(rewind_to: int) -> None:
    model = network()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lottery = LotteryTicket(model, train, fraction=0.3, rounds=3, rewind_to=rewind_to)
    report = lottery.run()
    evaluated = [[step for step, _ in training.accuracies] for training in report.trainings]
    assert evaluated == [[2, 4, 6, 8]] + [[step for step in (2, 4, 6, 8) if step > rewind_to]] * 3

    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    course = by_hand(first, masks, 0)
    rewound = course[rewind_to]
    for number in range(4):
        found = lottery.masks(number)
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[name], masks[name]) for name in masks)
        state = dense_state_dict(lottery.ticket(number))
        assert state.keys() == course[-1].keys()
        for name, weight in course[-1].items():
            torch.testing.assert_close(state[name], weight, rtol=1e-12, atol=1e-14)
        masks = prune_by_hand(course[-1], masks, 0.3)
        start = {name: weight * masks.get(name, 1) for name, weight in rewound.items()}
        course = by_hand(start, masks, rewind_to)


def test_one_shot() -> None:
    report = LotteryTicket(network(), train, fraction=0.8, rounds=1).run()
    assert [training.kept for training in report.trainings] == [120, 24]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_of_all_rounds(scope: str) -> None:
    report = LotteryTicket(network(), train, fraction=0.2, rounds=4, scope=scope).run()
    # 120 - 24, 96 - 19 (19.2), 77 - 15 (15.4), 62 - 12 (12.4); by layer: 72, 58, 46, 37, 30 and 48, 38, 30, 24, 19
    expected = [120, 96, 77, 62, 50] if scope == "global" else [120, 96, 76, 61, 49]
    assert [training.kept for training in report.trainings] == expected


def test_fraction_for_each_layer() -> None:
    fractions = {"0.weight": 0.5, "2.weight": 0.25}
    lottery = LotteryTicket(network(), train, fraction=fractions, rounds=1, scope="layer")
    lottery.run()
    assert {name: int(mask.sum()) for name, mask in lottery.masks(1).items()} == {"0.weight": 36, "2.weight": 36}


def test_skipped_weights_are_not_pruned() -> None:
    lottery = LotteryTicket(network(), train, fraction=0.5, rounds=1, skip=["2"])
    lottery.run()
    assert list(lottery.masks(1)) == ["0.weight"]


def test_model_and_generators_are_left_alone() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    random.seed(123)
    np.random.seed(124)  # noqa: NPY002  # states that no lottery leaves behind
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    LotteryTicket(model, train, rounds=1, controls=["reinitialised", "random mask"]).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]


def test_all_trainings_draw_the_same_numbers() -> None:
    drawn = []

    def draws(model: nn.Module, log: TrainingLog) -> None:
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))  # noqa: NPY002
        train(model, log)

    LotteryTicket(network(), draws, rounds=2, controls=["random mask"], seed=5).run()
    LotteryTicket(network(), draws, rounds=1, seed=6).run()
    assert len(set(drawn[:5])) == 1
    for of_one_generator in zip(*drawn, strict=True):
        assert len(set(of_one_generator)) == 2


def test_accuracy_that_the_training_returns_is_the_last_one() -> None:
    def returns(model: nn.Module, log: TrainingLog) -> float:
        train(model, log)
        return 0.5

    report = LotteryTicket(network(), returns, rounds=1).run()
    assert [training.final for training in report.trainings] == [0.5, 0.5]


def test_buffers_are_rewound() -> None:
    counted = []

    def count(model: nn.Module, log: TrainingLog) -> None:
        counted.append(int(model[1].num_batches_tracked))  # type: ignore[index]
        train(model, log)

    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4)).double()
    LotteryTicket(model, count, rounds=1, rewind_to=2, controls=["reinitialised"]).run()
    assert counted == [0, 2, 0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(4)], nn.Linear(6, 4)).double()


def test_converted_network() -> None:
    plain = residual()
    reports, weights = [], []
    for backward in ("reversible", "stored"):
        model = mn.convert(plain, X[:2], gamma=0.5, backward=backward)
        lottery = LotteryTicket(model, train, fraction=0.4, rounds=2)
        reports.append([training.accuracies for training in lottery.run().trainings])
        weights.append(lottery.ticket(2).state_dict())
    assert reports[0] == reports[1]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any]]] = {
    "gamma": ({"gamma": 1 / 8}, lambda model: mn.schedule_gamma(model, STEPS, 1 / 8, 7 / 8)),
    "dr2net": (
        {"coupling": "dr2net"},
        lambda model: mn.schedule_dr2net(model, STEPS, mn.Dr2Net(), mn.Dr2Net(alpha=1 / 2, beta=1 / 2)),
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_trained_ticket_moves_by_what_its_schedule_came_to(kind: str, tmp_path: Path) -> None:
    """It had the weights of the end and the gamma of the beginning: another function, in silence."""
    options, schedule_of = SCHEDULES[kind]
    ends: list[Tensor] = []

    def scheduled(model: nn.Module, log: TrainingLog) -> None:
        schedule = schedule_of(model)
        schedule.load_state_dict({**schedule.state_dict(), "steps_done": log.start_step})
        log._on_step, on_step = lambda step: (schedule.step(), on_step(step)), log._on_step
        train(model, log)
        ends.append(model(X).detach())

    for _ in range(2):  # the second time from the folder
        lottery = LotteryTicket(
            mn.convert(residual(), X[:2], **options), scheduled, rounds=1, rewind_to=2, folder=tmp_path
        )
        lottery.run()
        for number, end in enumerate(ends):
            assert torch.equal(lottery.ticket(number)(X), end)
            begun = streams_of(lottery.ticket(number, trained=False))[0]
            assert begun.gamma == (Fraction(1, 8) if kind == "gamma" else mn.Dr2Net().beta)
    assert len(ends) == 2


def test_a_folder_is_not_gone_on_with_at_another_gamma(tmp_path: Path) -> None:
    """It was, in silence: the tickets of one round were those of another network than the next one's."""
    models = [mn.convert(residual(), X[:2], gamma=gamma) for gamma in (1 / 2, 3 / 4)]
    LotteryTicket(models[0], train, rounds=1, folder=tmp_path).run()
    with pytest.raises(CheckpointError, match="0 at gamma 1/2 there, 0 at gamma 3/4 now"):
        LotteryTicket(models[1], train, rounds=2, folder=tmp_path).run()
    with pytest.raises(CheckpointError, match="0 at gamma 1/2 there, not converted now"):
        LotteryTicket(residual(), train, rounds=2, folder=tmp_path).run()


def test_network_of_masked_weights_alone_is_seen_to_be_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False)).double()
    report = LotteryTicket(model, train, rounds=1).run()
    assert [training.steps for training in report.trainings] == [STEPS, STEPS]


class Counting(nn.Linear):
    """A layer whose state dict holds what is no tensor."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_extra_state_of_modules_is_rewound(tmp_path: Path) -> None:
    seen = []

    def train_counting(model: nn.Module, log: TrainingLog) -> None:
        seen.append(model.calls)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(log.start_step, 3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
            log.step()

    lottery = LotteryTicket(Counting(4, 4), train_counting, rounds=2, rewind_to=1, folder=tmp_path)
    lottery.run()
    assert seen == [0, 1, 1]
    assert lottery.ticket(2).calls == 3
