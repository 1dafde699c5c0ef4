from __future__ import annotations

from pathlib import Path

import pytest

from momentumnet.finetuning.metrics import Epoch

pytest.importorskip("tensorboard")


def epoch(number: int) -> Epoch:
    return Epoch(number, 2.0 / number, 0.1 * number, 0.2, 0.3, 0.01, 5.0)


def read(folder: Path, name: str) -> dict[int, float]:
    """What TensorBoard's own reader shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {event.step: event.value for event in found.Scalars(name)}


def test_epochs_are_there_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    from momentumnet.finetuning.tensorboard import Board

    board = Board(tmp_path, "momentum", [])
    for number in (1, 2, 3):
        board.add(epoch(number))
    board.close()
    folder = tmp_path / "tensorboard" / "momentum"
    assert read(folder, "loss") == pytest.approx({1: 2.0, 2: 1.0, 3: 2 / 3})
    resumed = Board(tmp_path, "momentum", [epoch(1)])  # the checkpoint is that of the first epoch
    resumed.add(epoch(2))
    resumed.close()
    assert read(folder, "accuracy") == pytest.approx({1: 0.1, 2: 0.2})


def test_a_run_that_began_without_it_is_there_in_full(tmp_path: Path) -> None:
    from momentumnet.finetuning.tensorboard import Board

    Board(tmp_path, "momentum", [epoch(1), epoch(2)]).close()
    assert read(tmp_path / "tensorboard" / "momentum", "loss") == pytest.approx({1: 2.0, 2: 1.0})
