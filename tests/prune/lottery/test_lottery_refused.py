"""Networks, trainings and options that a lottery refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from momentumnet.prune import LotteryTicket, TrainingLog, apply_masks, magnitude_masks
from tests.prune.lottery.lotteries import STEPS, network, train


def test_a_network_with_masks_is_refused() -> None:
    """It ended, behind the dense training, in a KeyError."""
    model = network()
    apply_masks(model, magnitude_masks(model, fraction=0.5))
    with pytest.raises(ValueError, match="remove_masks"):
        LotteryTicket(model, train)


def untrained(model: nn.Module, log: TrainingLog) -> None:
    train(copy.deepcopy(model), log)


def silent(model: nn.Module, log: TrainingLog) -> None:
    train(model, TrainingLog())


def wordy(model: nn.Module, log: TrainingLog) -> str:
    train(model, log)
    return "fine"


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (untrained, {}, ValueError, "left the model that it was given as it was"),
        (silent, {"rewind_to": 1}, ValueError, "reported 0 steps, and rewind_to=1 lies beyond"),
        (train, {"rewind_to": STEPS + 1}, ValueError, f"reported {STEPS} steps"),
        (wordy, {}, TypeError, "must return the last accuracy or None, got str"),
    ],
)
def test_training_that_cannot_be_used(
    function: Callable[..., Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LotteryTicket(network(), function, rounds=1, **options).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"rounds": True}, "rounds must be"),
        ({"rewind_to": -1}, "rewind_to must be a whole number of at least 0"),
        ({"rewind_to": 1.5}, "rewind_to must be"),
        ({"fraction": 1.5}, "fraction"),
        ({"scope": "net"}, "scope"),
        ({"structure": "filter"}, "structure must be one of 'weight', 'channel', 'block', got 'filter'"),
        ({"structure": "channel"}, "needs example_inputs, with which the channels are found"),
        ({"controls": ["other"]}, "controls must be of 'reinitialised', 'random mask', got 'other'"),
        ({"early_bird": 2.0}, "early_bird must be a share"),
        ({"early_bird": "0.1"}, "early_bird must be a share"),
        ({"skip": ["nothing"]}, "nothing"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LotteryTicket(network(), train, **options)


def test_unknown_options() -> None:
    with pytest.raises(TypeError):
        LotteryTicket(network(), train, sparsity=0.8)  # type: ignore[call-arg]


def test_round_that_was_not_trained() -> None:
    lottery = LotteryTicket(network(), train, rounds=1)
    with pytest.raises(LookupError, match=r"round 1 of 'ticket' has not been trained; call run\(\) first"):
        lottery.ticket(1)
    lottery.run()
    with pytest.raises(LookupError, match="round 1 of 'random mask'"):
        lottery.ticket(1, arm="random mask")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None])
def test_accuracy_must_be_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match="an accuracy must be a finite number"):
        TrainingLog().accuracy(value)
