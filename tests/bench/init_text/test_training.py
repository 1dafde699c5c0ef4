from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.init_text import methods, training
from momentumnet.bench.init_text.characters import TextData, from_text
from momentumnet.bench.init_text.methods import Choice, Grid, bound, suits
from momentumnet.bench.init_text.training import Recipe, Training
from momentumnet.bench.trainings import initialisations
from momentumnet.init import InitReport

TEXT = from_text("the quick brown fox jumps over the lazy dog; " * 20, "foxes", "foxes.txt")
RECIPE = Recipe(depth=1, width=16, length=8, batch_size=4, steps=12, warmup_steps=3, init_steps=2, clip=None)


def a_training(method: str = "plain", *, recipe: Recipe = RECIPE, **case: Any) -> Training:
    learned = method in methods.LEARNED
    values = {"network": "post-norm", "method": method, "init_for": None, "optimizer": "adam", "rate": 1e-2, "seed": 0}
    choice = Choice(0.01, 0.5, 0.2) if learned else None
    return Training({**values, **case}, TEXT, recipe, torch.device("cpu"), choice, 0.02)


def test_decoder_learns() -> None:
    row = a_training(network="pre-norm", recipe=Recipe(1, 32, 8, 16, 80, 10, 2, None)).row()
    assert row["validation"] < 0.6 * TEXT.frequency_loss(8, 64)
    assert [place[0] for place in row["course"]] == list(range(0, 81, 8))
    assert row["validation"] == row["course"][-1][2]
    assert row["diverged"] is False


@pytest.mark.parametrize("method", ["plain", "warmup"])
@pytest.mark.parametrize(("optimizer", "kind"), [("adam", "Adam"), ("sgd", "SGD")])
def test_optimizer_and_rates_are_those_that_the_row_says(
    monkeypatch: pytest.MonkeyPatch, method: str, optimizer: str, kind: str
) -> None:
    seen: list[float] = []
    losses: list[float] = []
    made: list[dict[str, Any]] = []

    class Recorded(getattr(torch.optim, kind)):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(options)

        def step(self, closure: Any = None) -> Any:
            seen.extend(group["lr"] for group in self.param_groups)
            losses.append(super().step(closure))
            return losses[-1]

    monkeypatch.setattr(training, kind, Recorded)
    course = a_training(method, optimizer=optimizer, rate=0.01).row()["course"]
    first = [0.01 * step / 4 for step in (1, 2, 3)] if method == "warmup" else []
    rest = 12 - len(first)
    assert seen == pytest.approx(first + [0.005 * (1 + math.cos(math.pi * step / rest)) for step in range(rest)])
    assert made == [{"momentum": 0.9} if optimizer == "sgd" else {}]
    assert [place[0] for place in course] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12]
    for (start, _, _), (end, loss, _) in itertools.pairwise(course):
        assert loss == pytest.approx(statistics.mean(losses[start:end]))


def test_places_of_the_text_are_those_of_the_seed_and_others_for_the_initialisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, seen = TextData.batches, []

    def recorded(self: TextData, size: int, length: int, seed: int) -> Any:
        seen.append((size, length, seed))
        return real(self, size, length, seed)

    monkeypatch.setattr(TextData, "batches", recorded)
    for seed in (0, 3):
        a_training("metainit", seed=seed).row()
    assert set(seen) == {(2, 8, 500_000), (4, 8, 0), (2, 8, 3_500_000), (4, 8, 3_000_000)}


def test_validation_is_in_eval_mode_and_steps_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    real, modes = training._loss, []

    def watched(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        modes.append((torch.is_grad_enabled(), model.training))
        return real(model, tokens, targets)

    monkeypatch.setattr(training, "_loss", watched)
    a_training().row()
    assert set(modes) == {(True, True), (False, False)}


def test_metainit_takes_the_rate_and_the_steps_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []

    def stand_in(model: nn.Module, loss_fn: Any, batches: Any, **options: Any) -> InitReport:
        called.append({**options, "batches": [tokens.shape for tokens, _ in batches]})
        return InitReport("metainit", {"w": 0.5, "v": 2.0}, (3.0, 2.0), ())

    monkeypatch.setattr(initialisations.init, "metainit_", stand_in)
    own = a_training("metainit")
    own.choice = Choice(0.07)
    row = own.row()
    assert called == [{"lr": 0.07, "steps": 2, "progress": False, "batches": [(2, 8)] * 2}]
    assert (row["init"]["objective"], row["init"]["scales"], row["tau"]) == ([3, 2], [0.5, 2], 0.07)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_clipping_is_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch, clip: float | None) -> None:
    norms: list[float] = []

    class Recorded(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            norms.append(float(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm()))
            return loss

    monkeypatch.setattr(training, "Adam", Recorded)
    a_training(recipe=replace(RECIPE, clip=clip)).row()
    assert (max(norms) <= 0.5 + 1e-6) == (clip is not None)


@pytest.mark.parametrize("init_for", ["adam", "sgd"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_gradinit_is_for_the_optimizer_that_the_row_names_whatever_trains(
    monkeypatch: pytest.MonkeyPatch, init_for: str, optimizer: str
) -> None:
    called: list[dict[str, Any]] = []

    def stand_in(model: nn.Module, loss_fn: Any, batches: Any, **options: Any) -> InitReport:
        called.append({**options, "batches": batches})
        return InitReport("gradinit", {"w": 0.5, "v": 2.0}, (3.0, 2.0), (9.0, 7.0, 5.0))

    monkeypatch.setattr(initialisations.init, "gradinit_", stand_in)
    row = a_training("gradinit", init_for=init_for, optimizer=optimizer).row()
    ((options),) = called
    batches = options.pop("batches")
    # eta 0.5 of the rate 0.02; the first step lowers the loss by 0.2 at most: 0.01 |g|_1, or 0.01 |g|_2^2.
    limit = 20 if init_for == "adam" else math.sqrt(20)
    expected = {"step_size": 0.01, "gradient_norm": pytest.approx(limit), "lr": 0.01, "steps": 2}
    assert options == {**expected, "optimizer": init_for, "progress": False}
    assert [tokens.shape for tokens, _ in batches] == [(2, 8)] * 4
    found = row["init"]
    assert (found["objective"], found["gradient_norms"], found["met"]) == ([3, 2], [9, 5], 2)
    assert (found["scales"], row["tau"], row["eta"], row["fall"]) == ([0.5, 2], 0.01, 0.5, 0.2)


@pytest.mark.parametrize("method", ["gradinit", "metainit", "tfixup"])
def test_initialisations_themselves_run_in_a_row(method: str) -> None:
    network, init_for = ("norm-free", None) if method == "tfixup" else ("post-norm", None)
    row = a_training(method, network=network, init_for="adam" if method == "gradinit" else init_for).row()
    assert "error" not in row
    assert row["init"]
    plain = a_training(network="post-norm").row()
    assert plain["init"] is None
    assert row["course"][0][2] != plain["course"][0][2]


@pytest.mark.parametrize(
    ("steps", "error"), [(40, "diverged: loss nan in step 2"), (4, "diverged: validation loss nan after step 1")]
)
def test_training_that_diverges_says_so_and_has_no_loss(steps: int, error: str) -> None:
    row = a_training(optimizer="sgd", rate=1e30, recipe=replace(RECIPE, steps=steps)).row()
    assert (row["diverged"], row["validation"], row["error"]) == (True, None, error)
    assert all(math.isfinite(place[2]) for place in row["course"])


def test_validation_loss_that_is_no_number_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.Training._train

    def spoiled(self: Training, model: nn.Module, advance: Any) -> None:
        with torch.no_grad():
            model.head.bias.fill_(math.nan)
        real(self, model, advance)

    monkeypatch.setattr(training.Training, "_train", spoiled)
    row = a_training().row()
    assert (row["diverged"], row["validation"], row["course"]) == (True, None, [])
    assert row["error"] == "diverged: validation loss nan after step 0"


def test_initialisation_that_fails_is_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> InitReport:
        raise FloatingPointError("metainit_, step 1: the gradient quotient is nan")

    monkeypatch.setattr(initialisations.init, "metainit_", fails)
    row = a_training("metainit").row()
    assert (row["diverged"], row["validation"]) == (False, None)
    assert row["error"].startswith("metainit_, step 1")


def test_choices_of_a_grid() -> None:
    grid = Grid((0.1, 0.2), (1.0,), (3.0, 4.0), (0.5,))
    assert grid.choices("gradinit") == [Choice(t, 1.0, f) for t in (0.1, 0.2) for f in (3.0, 4.0)]
    assert grid.choices("metainit") == [Choice(0.5)]
    assert grid.choices("warmup") == []


def test_bound_is_that_of_the_authors_for_sgd() -> None:
    assert bound("sgd", 0.1, 0.1) == pytest.approx(1)
    assert bound("adam", 1e-3, 0.1) == pytest.approx(100)


def test_tfixup_is_for_the_network_without_norms_alone() -> None:
    assert [suits(network, "tfixup") for network in ("post-norm", "pre-norm", "norm-free")] == [False, False, True]
    assert [suits(network, "plain") for network in ("post-norm", "pre-norm", "norm-free")] == [True, True, False]
