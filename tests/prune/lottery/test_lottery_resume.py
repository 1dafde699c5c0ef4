"""A lottery that was killed goes on from its folder and comes to the same result."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.errors import CheckpointError
from momentumnet.prune import LotteryTicket, TicketTraining, TrainingLog
from tests.prune.lottery.lotteries import STEPS, network, train

OPTIONS: dict[str, Any] = {"fraction": 0.3, "rounds": 2, "rewind_to": 2, "controls": ["reinitialised", "random mask"]}
TRAININGS = 1 + 3 * 2


class KilledError(BaseException):
    """Not to be caught by what catches exceptions."""


def plain(trainings: tuple[TicketTraining, ...]) -> list[TicketTraining]:
    # nan is equal to nothing, itself included; the duration differs from run to run.
    return [
        dataclasses.replace(training, seconds=0.0, removed_norm=repr(training.removed_norm)) for training in trainings
    ]  # type: ignore[arg-type]


def outcome(lottery: LotteryTicket) -> tuple[list[TicketTraining], list[dict[str, torch.Tensor]]]:
    trainings = plain(lottery.run().trainings)
    return trainings, [lottery.ticket(t.round, arm=t.arm).state_dict() for t in trainings]


def assert_same(lottery: LotteryTicket) -> None:
    expected = outcome(LotteryTicket(network(), train, **OPTIONS))
    got = outcome(lottery)
    assert got[0] == expected[0]
    for one, other in zip(got[1], expected[1], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("killed_in", [*range(TRAININGS)])
@pytest.mark.parametrize("at_step", [0, 3])
def test_killed_in_a_training(tmp_path: Path, killed_in: int, at_step: int) -> None:
    trained = []

    def mortal(model: nn.Module, log: TrainingLog) -> None:
        if len(trained) == killed_in:
            log._on_step = lambda step: die(step, log._on_step) if step > at_step else None
        train(model, log)
        trained.append(model)

    def die(*_: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        LotteryTicket(network(), mortal, folder=tmp_path, **OPTIONS).run()
    again = []

    def counted(model: nn.Module, log: TrainingLog) -> None:
        again.append(model)
        train(model, log)

    # Another process makes its model anew, with other random weights.
    assert_same(LotteryTicket(network(seed=7), counted, folder=tmp_path, **OPTIONS))
    assert len(again) == TRAININGS - killed_in


@pytest.mark.parametrize("writes", range(TRAININGS + 1))
def test_killed_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    replace, done = os.replace, []

    def dying(source: Any, target: Any) -> None:
        if len(done) == writes:
            raise KilledError
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KilledError):
        LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()
    monkeypatch.setattr(os, "replace", replace)
    seed = 0 if writes == 0 else 7  # before the first weights were written there is nothing to go on from
    assert_same(LotteryTicket(network(seed=seed), train, folder=tmp_path, **OPTIONS))


def test_finished_run_trains_nothing(tmp_path: Path) -> None:
    LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()

    def never(model: nn.Module, log: TrainingLog) -> None:
        raise KilledError

    model = network(seed=7)
    lottery = LotteryTicket(model, never, folder=tmp_path, **OPTIONS)
    seen: list[TicketTraining] = []
    report = lottery.run(notify=seen.append)
    assert len(seen) == len(report.trainings) == TRAININGS
    assert all(torch.equal(tensor, network(seed=7).state_dict()[name]) for name, tensor in model.state_dict().items())
    assert_same(lottery)


def test_more_rounds_and_controls_go_on(tmp_path: Path) -> None:
    LotteryTicket(network(), train, folder=tmp_path, **{**OPTIONS, "rounds": 1, "controls": []}).run()
    assert_same(LotteryTicket(network(seed=7), train, folder=tmp_path, **OPTIONS))


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"fraction": 0.2}, r"fraction 0\.3 there, 0\.2 now"),
        ({"rewind_to": 0}, "rewind_to 2 there, 0 now"),
        ({"scope": "layer"}, "scope global there, layer now"),
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"skip": ["2"]}, "skip  there, 2 now"),
        ({"early_bird": 0.1}, r"early_bird None there, 0\.1, 2 rounds now"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changed: dict[str, Any], difference: str) -> None:
    LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()
    with pytest.raises(CheckpointError, match=f"{difference}.*delete it, or give another folder"):
        LotteryTicket(network(), train, folder=tmp_path, **{**OPTIONS, **changed}).run()


def test_other_network_is_refused(tmp_path: Path) -> None:
    LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()
    other = nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 4)).double()
    with pytest.raises(CheckpointError, match="network"):
        LotteryTicket(other, train, folder=tmp_path, **OPTIONS).run()


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()
    (path,) = tmp_path.glob("ticket-001*")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"ticket-001\.pt is damaged, .* delete it"):
        LotteryTicket(network(), train, folder=tmp_path, **OPTIONS).run()
    path.unlink()
    assert_same(LotteryTicket(network(seed=7), train, folder=tmp_path, **OPTIONS))


def test_early_bird_ends_all_trainings_but_the_last(tmp_path: Path) -> None:
    # Masks of all but one evaluation settle at once where learning makes no difference to the order of magnitudes.
    def slowly(model: nn.Module, log: TrainingLog) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        for _ in range(log.start_step, 20):
            model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
            optimizer.step()
            log.step()
            log.accuracy(0.5)
            if log.stop:
                break

    report = LotteryTicket(network(), slowly, rounds=2, early_bird=0.05, folder=tmp_path).run()
    assert [training.steps for training in report.trainings] == [5, 5, 20]
    assert all(training.distances == (0.0,) * training.steps for training in report.trainings)


def test_watching_does_not_stop() -> None:
    lottery = LotteryTicket(network(), train, rounds=1, fraction=0.5, early_bird=0.0)
    report = lottery.run()
    assert [training.steps for training in report.trainings] == [STEPS, STEPS]
    for training in report.trainings:
        assert len(training.distances) == len(training.accuracies)
        assert training.distances[-1] == 0  # evaluated after the last step: these are the final masks
    assert report.trainings[0].distances[0] > 0
