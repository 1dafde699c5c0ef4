from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.init_text import costs
from momentumnet.bench.init_text.training import Training
from tests.cli.bench.studies import UNSEARCHED, rows, run


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "init-text")


def markdown() -> str:
    return Path("out", "init-text-foxes.md").read_text()


def stand_in(self: Training, advance: Callable[[], object]) -> dict[str, Any]:
    """A row whose loss says what it is of; ``diverged`` for seed 1."""
    loss = self.case["seed"] + self.case["rate"] + (0.0 if self.choice is None else self.choice.tau)
    options = {} if self.choice is None else vars(self.choice)
    if self.case["seed"] == 1:
        ended = {"validation": None, "diverged": True, "error": "diverged: loss nan in step 3"}
        return {**ended, "course": [], "seconds": 1.0, **options}
    course = [[0, None, 4.0], [4, 3.5, loss]]
    return {"validation": loss, "diverged": False, "course": course, "init_seconds": 0.5, "seconds": 1.0, **options}


def test_table_has_mean_and_deviation_of_each_network_rate_and_method(bench: Callable[..., Any]) -> None:
    found = rows(bench("curves", *UNSEARCHED, "--rates", "0.01,0.02"))
    keys = Counter((row["network"], row["rate"], row["method"]) for row in found)
    methods = {"post-norm": ("plain", "warmup", "gradinit", "metainit"), "norm-free": ("tfixup",)}
    methods["pre-norm"] = methods["post-norm"]
    assert keys == {(n, r, m): 2 for n, own in methods.items() for r in (0.01, 0.02) for m in own}
    assert {row["init_for"] for row in found if row["method"] == "gradinit"} == {"adam"}
    table = markdown()
    for (network, rate, method), _ in keys.items():
        own = [r["validation"] for r in found if (r["network"], r["rate"], r["method"]) == (network, rate, method)]
        mean = f"{statistics.mean(own):.3f} ± {statistics.stdev(own):.3f}"
        assert f"| {network} | {rate:g} | {method} | {mean} | 0 of 2 | " in table
    assert "no clipping" in table
    assert Path("out", "init-text-foxes.png").stat().st_size > 0


def test_diverged_run_is_counted_and_not_in_the_mean(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "row", stand_in)
    found = rows(bench("curves", *UNSEARCHED, "--methods", "plain", "--networks", "post-norm", "--seeds", "3"))
    assert [row["diverged"] for row in found] == [False, True, False]
    # Means of 0.01 and 2.01; the frequencies of characters are worth more than either.
    assert "| post-norm | 0.01 | plain | 1.010 ± 1.414 | 1 of 3 | 0 of 3 | 2 of 3 |" in markdown()
    assert "post-norm, plain, adam 0.01, seed 1: diverged: loss nan in step 3" in markdown()


def test_nothing_but_diverged_runs_is_a_failure_and_no_number(bench: Callable[..., Any]) -> None:
    done = bench("optimizers", *UNSEARCHED, "--sgd-rate", "1e30", "--seeds", "1")
    sgd = [row for row in rows(done) if row["optimizer"] == "sgd"]
    assert {(row["validation"], row["diverged"]) for row in sgd if row["method"] == "plain"} == {(None, True)}
    (line,) = [line for line in markdown().splitlines() if line.startswith("| plain |")]
    assert line.startswith("| plain | fails | 0 of 1 | 1 of 1 | ")
    assert "nan" not in line


def test_stuck_runs_are_those_no_better_than_frequencies(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "row", stand_in)
    done = bench("curves", *UNSEARCHED, "--methods", "plain", "--networks", "pre-norm", "--seeds", "8")
    limit = json.loads(done.out)["settings"]["frequency_loss"]
    stuck = sum(seed + 0.01 >= limit for seed in (0, 2, 3, 4, 5, 6, 7))
    assert 0 < stuck < 7
    assert f"| 1 of 8 | {stuck} of 8 | 7 of 8 |" in markdown()


def test_each_initialisation_is_trained_with_each_optimizer(bench: Callable[..., Any]) -> None:
    found = rows(bench("optimizers", *UNSEARCHED, "--seeds", "1", "--sgd-rate", "0.3"))
    keys = [(row["method"], row["init_for"], row["optimizer"], row["rate"]) for row in found]
    assert keys == [
        (method, init_for, optimizer, rate)
        for method, init_for in (("plain", None), ("gradinit", "sgd"), ("gradinit", "adam"))
        for optimizer, rate in (("sgd", 0.3), ("adam", 0.01))
    ]
    for row in found:
        if row["method"] == "gradinit":
            expected = ("sgd", 0.3) if row["init_for"] == "sgd" else ("adam", 0.01)
            assert (row["init"]["optimizer"], row["init"]["step_size"]) == expected
    table = markdown().split("# Initialised for one optimizer")[1]
    for index, name in enumerate(("plain", "GradInit for SGD", "GradInit for Adam")):
        first, second = (f"{row['validation']:.3f}" for row in found[2 * index : 2 * index + 2])
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} | ")]
        assert line.split(" | ")[1] == first
        assert line.split(" | ")[4] == second


def test_rows_of_other_rates_and_initialisations_are_kept_apart(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_apart(self: Training, advance: Callable[[], object]) -> dict[str, Any]:
        tens = {"adam": 0, "sgd": 10}[self.case["optimizer"]]
        ones = {None: 0, "sgd": 1, "adam": 2}[self.case["init_for"]]
        loss = tens + ones + self.case["rate"]
        return {**stand_in(self, advance), "validation": loss, "course": [[0, None, 4.0], [4, 3.5, loss]]}

    monkeypatch.setattr(Training, "row", told_apart)
    chosen = ("--networks", "post-norm", "--methods", "plain,gradinit", "--rates", "0.1,0.2", "--sgd-rate", "0.3")
    assert bench("curves", "optimizers", *UNSEARCHED, *chosen, "--seeds", "1").status == 0
    curves, optimizers = markdown().split("# Initialised for one optimizer")
    lines = [line.split(" | ")[1:4] for line in curves.splitlines() if line.startswith("| post-norm")]
    assert lines == [
        ["0.1", "plain", "0.100"],
        ["0.1", "gradinit", "2.100"],
        ["0.2", "plain", "0.200"],
        ["0.2", "gradinit", "2.200"],
    ]
    # SGD at 0.3, and Adam at the largest of its rates.
    for line in (
        "| plain | 10.300 | 1 of 1 | 0 of 1 | 0.200 | 0 of 1 | 0 of 1 |",
        "| GradInit for SGD | 11.300 | 1 of 1 | 0 of 1 | 1.200 | 0 of 1 | 0 of 1 |",
        "| GradInit for Adam | 12.300 | 1 of 1 | 0 of 1 | 2.200 | 0 of 1 | 0 of 1 |",
    ):
        assert line in optimizers


def test_options_that_do_best_in_the_search_are_taken_and_shown(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {"gradinit": (0.2, 1.0, 10.0), "metainit": (0.4, None, None)}

    def searched(self: Training, advance: Callable[[], object]) -> dict[str, Any]:
        values = (self.choice.tau, self.choice.eta, self.choice.fall) if self.choice else None
        row = stand_in(self, advance)
        if self.case["part"] == "search":
            assert self.recipe.steps == 2
            row["validation"] = 1.0 if values == best[self.case["method"]] else 2.0
        else:
            assert self.recipe.steps == 4
        return row

    monkeypatch.setattr(Training, "row", searched)
    options = ("--taus", "0.1,0.2", "--etas", "0.5,1", "--falls", "1,10", "--metainit-taus", "0.3,0.4", "--seeds", "1")
    found = rows(bench("curves", *options, "--methods", "gradinit,metainit", "--rates", "0.01,0.02"))
    for row in found:
        if row["part"] == "train":
            assert (row["tau"], row["eta"], row["fall"]) == best[row["method"]]
    tried = [row for row in found if row["part"] == "search"]
    assert Counter((row["network"], row["method"]) for row in tried) == {
        (network, method): count
        for network in ("post-norm", "pre-norm")
        for method, count in (("gradinit", 8), ("metainit", 2))
    }
    assert {(row["seed"], row["rate"]) for row in tried} == {(1000, 0.02)}
    table = markdown().split("# What was searched")[1]
    for tau in (0.1, 0.2):
        for eta in (0.5, 1):
            for fall in (1, 10):
                assert table.count(f"| gradinit for adam | {tau:g} | {eta:g} | {fall:g} |") == 2


def test_costs_are_of_each_method_on_each_network(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RESNET", "resnet8")
    found = rows(bench("cost", *UNSEARCHED, "--repeats", "1"))
    networks = {row["network"] for row in found}
    assert networks == {"resnet8, 16 images", "post-norm decoder, 2 x 8 characters"}
    for network in networks:
        peaks = {row["method"]: row["peak_bytes"] for row in found if row["network"] == network}
        assert list(peaks) == ["forward and backward", "gradinit, sgd", "gradinit, adam", "metainit"]
        # One derivative more takes more memory: none for Adam's sign, a second for SGD, a third for MetaInit.
        assert peaks["forward and backward"] < peaks["gradinit, adam"] < peaks["gradinit, sgd"] < peaks["metainit"]
    for row in found:
        plain = next(other for other in found if other["network"] == row["network"])
        peaks = f"{row['peak_bytes'] / 2**20:.1f} | {row['peak_bytes'] / plain['peak_bytes']:.2f}"
        (line,) = [
            line for line in markdown().splitlines() if line.startswith(f"| {row['network']} | {row['method']} |")
        ]
        assert f" | {peaks} | " in line
    assert "| 500: " in markdown()


def test_quick_is_whole(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momentumnet.cli.bench.init_text.costs", lambda *_, **__: iter([]))
    done = command("bench", "init-text", "--quick", "--output", "out", "--json", "--device", "cpu")
    found = rows(done)
    assert Counter(row["part"] for row in found) == {"train": 2 * 9 + 4, "search": 4 + 4 + 2}
    assert all(row["validation"] is not None and math.isfinite(row["validation"]) for row in found)
    assert json.loads(done.out)["settings"]["text"] == "python-topics"
