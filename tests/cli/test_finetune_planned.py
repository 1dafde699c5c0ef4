"""momentumnet finetune within a budget of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.conversion import convert
from tests.cli.finetuned import weights


def test_memory_to_spare_leads_to_the_same_weights(finetune: Callable[..., Any]) -> None:
    small = ("--batch-size", "2")
    least = json.loads(finetune("--epochs", "1", "--output", "least", *small, "--budget", "least", "--json").out)
    spared = json.loads(finetune("--epochs", "1", "--output", "spared", *small, "--spare", "64KiB", "--json").out)
    assert least["settings"]["spare"] == 0
    assert spared["settings"]["spare"] == 2**16
    peaks = [values["networks"]["momentum"]["peak_bytes"] for values in (least, spared)]
    assert peaks[1] <= 1.1 * peaks[0] + 2**16  # as predicted
    assert spared["networks"]["momentum"]["saved_bytes"] > least["networks"]["momentum"]["saved_bytes"]
    before, after = weights("least"), weights("spared")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("batches", "gradients"), [("1", "anew"), ("2", "present")])
def test_a_budget_counts_gradients_that_are_accumulated(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, batches: str, gradients: str
) -> None:
    told = []

    def told_of(*given: Any, **options: Any) -> Any:
        told.append(options["gradients"])
        return convert(*given, **options)

    monkeypatch.setattr("momentumnet.cli.finetune.convert", told_of)
    assert not finetune("--epochs", "1", "--budget", "least", "--accumulate", batches).status
    assert told == [gradients]


def test_a_budget_in_place_of_the_options_that_it_chooses(finetune: Callable[..., Any]) -> None:
    done = finetune("--epochs", "1", "--output", "planned", "--budget", "least", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    momentum, unconverted = values["networks"]["momentum"], values["networks"]["unconverted"]
    assert values["settings"]["budget"] == "least"
    assert momentum["saved_bytes"] < 0.8 * unconverted["saved_bytes"]
    assert "no choice fits a budget of 1.00 MiB" in finetune("--budget", "1MiB").err
    for option in (("--backward", "stored"), ("--others", "keep")):
        for bytes_ in ("--budget", "--spare"):
            refused = finetune(bytes_, "1GiB", *option)
            assert refused.status == 2
            assert "leave out --others and --backward" in refused.err
    assert "leave out one of the two" in finetune("--budget", "1GiB", "--spare", "1MiB").err


def test_host_memory_is_for_a_plan_on_a_gpu(finetune: Callable[..., Any]) -> None:
    for asked, said in (
        ((), "add for example --budget 4GiB"),
        (("--budget", "1GiB"), "device is cpu; leave it out"),
    ):
        refused = finetune("--offload", "--device", "cpu", *asked)
        assert refused.status == 2
        assert said in refused.err


def test_a_network_of_which_the_plan_recomputes_nothing_is_trained_as_it_is(finetune: Callable[..., Any]) -> None:
    options = ("--model", "squeezenet1_1", "--image-size", "64", "--budget", "64GiB", "--output", "out")
    done = finetune(*options, "--epochs", "1", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["settings"]["gamma"] == "0"
    momentum, unconverted = values["networks"]["momentum"], values["networks"]["unconverted"]
    assert momentum["saved_bytes"] == unconverted["saved_bytes"]
    assert "resuming after epoch 1 of 2" in finetune(*options, "--epochs", "2", "--resume").out


@pytest.mark.parametrize("gammas", [(0, 1 / 8), (1 / 8, 0)])
def test_a_resumed_run_keeps_the_function_that_its_plan_chose(
    gammas: tuple[float, float], finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans go by measured times, which are not the same twice."""
    asked = []
    for epochs, chosen in zip(("1", "2"), gammas, strict=True):

        def planned(*args: Any, gamma: Any = None, chosen: float = chosen, **options: Any) -> Any:
            asked.append(gamma)
            return convert(*args, gamma=chosen if gamma is None and "budget" in options else gamma, **options)

        monkeypatch.setattr("momentumnet.cli.finetune.convert", planned)
        again = () if epochs == "1" else ("--resume",)
        done = finetune("--epochs", epochs, "--output", "out", "--budget", "1GiB", "--json", *again)
        assert done.status == 0, done.err
        assert json.loads(done.out)["settings"]["gamma"] == str(exact_gamma(gammas[0]))
    assert asked == [None, exact_gamma(gammas[0])]
