"""momentumnet finetune within a budget of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.conversion.conversion import convert
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


DROPPING = """\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.GroupNorm(1, 8), nn.Dropout(0.1), nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.1))

    def forward(self, x):
        return x + self.inner(x)


def network():
    torch.manual_seed(0)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Block() for _ in range(6)), *ends).eval()
"""


def test_a_network_that_comes_in_eval_mode_is_planned_as_it_is_trained(
    command: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' do, whose dropout then keeps masks that nobody planned for."""
    (tmp_path / "mine.py").write_text(DROPPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ("finetune", "mine:network", "--data", str(photos), "--image-size", "32", "--batch-size", "8")
    asked += ("--epochs", "1", "--workers", "0", "--budget", "4MiB")
    done = command(*asked, "--json")
    assert done.status == 0, done.err
    networks = json.loads(done.out)["networks"]
    assert networks["momentum"]["peak_bytes"] <= 4 << 20 < networks["unconverted"]["peak_bytes"]
    assert "eval mode" not in done.err
    assert "Converted at gamma 0, for a budget (4.00 MiB) that gradients of parameters count in." in done.err
