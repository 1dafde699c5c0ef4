from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from torch import Tensor, nn

from momentumnet.bench.sharpness import training as sharpness_training
from tests.cli.bench.trainings import TINY, rows_without

SMALL = ("--models", "lenet300", "--measurements", "2", "--probes", "8")
rows = partial(rows_without, ("seconds", "step_seconds"))


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: command("bench", "sharpness", *TINY, *SMALL, "--output", "out", "--json", *arguments)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landscapes that are computed from a parameter, where a test is not about them."""

    def measured(model: nn.Module, batch: tuple[Tensor, Tensor], ascents: int) -> dict[str, Any]:
        value = 1 + abs(float(next(model.parameters()).detach().flatten()[0]))
        eigenvalues = [10 * value, 4.0, 3.0, 2.0, value]
        return {"first_step": value / 2, "sharpness": value, "eigenvalues": eigenvalues, "converged": value > 0}

    monkeypatch.setattr(sharpness_training, "measure", measured)


def case(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["rho"], row["seed"], len(row["measurements"])


def figures(own: list[dict[str, Any]]) -> str:
    """What a table says of rows that differ in their seed."""
    last = [row["measurements"][-1] for row in own]
    columns = [
        ([row["accuracies"][-1] for row in own], ".2f"),
        ([max(row["accuracies"]) for row in own], ".2f"),
        ([row["losses"][-1] for row in own], ".3f"),
        ([look["first_step"] for look in last], ".4f"),
        ([look["sharpness"] for look in last], ".4f"),
        ([look["eigenvalues"][0] for look in last], ".2f"),
        ([look["eigenvalues"][4] for look in last], ".2f"),
    ]
    return " | ".join(f"{statistics.mean(v):{form}} ± {statistics.stdev(v):{form}}" for v, form in columns)


@pytest.mark.usefixtures("flat")
def test_tables_and_figure_are_means_and_deviations_of_the_rows(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[pyplot.Figure] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    found = rows(bench("--methods", "sgd,sam", "--seeds", "2", "--rhos", "0,0.05,0.2"))
    assert sorted(map(case, found), key=str) == sorted(
        [
            (m, r, s, n)
            for s in (0, 1)
            for m, r, n in (("sgd", None, 2), ("sam", 0.05, 2), ("sam", 0, 1), ("sam", 0.2, 1))
        ],
        key=str,
    )

    def own(method: str, rho: float | None) -> list[dict[str, Any]]:
        return [row for row in found if (row["method"], row["rho"]) == (method, rho)]

    file = Path("out", "sharpness-digits.md").read_text()
    by_method, by_rho = file.split("# ")[1:]
    assert by_method.startswith("lenet300, 40 % of the training labels wrong\n")
    assert f"| sgd | 2 | {figures(own('sgd', None))} | 2 |" in by_method
    assert f"| sam | 4 | {figures(own('sam', 0.05))} | 2 |" in by_method
    lines = [line for line in by_rho.splitlines() if line.startswith("| 0")]
    assert lines == [f"| {rho:g} | {figures(own('sam', rho))} | 2 |" for rho in (0, 0.05, 0.2)]
    assert by_method.count("| sam |") == 1
    monkeypatch.undo()
    (figure,) = drawn
    pyplot.close(figure)
    top, sharp, accurate, flat = figure.axes
    for axes, quantity in ((top, lambda look: look["eigenvalues"][0]), (sharp, lambda look: look["sharpness"])):
        for container, (method, rho, passes) in zip(
            axes.containers, (("sgd", None, [1, 2]), ("sam", 0.05, [2, 4])), strict=True
        ):
            x, y = container.lines[0].get_data()
            looks = zip(*(row["measurements"] for row in own(method, rho)), strict=True)
            assert (container.get_label(), list(x)) == (method, passes)
            assert list(y) == pytest.approx([statistics.mean(map(quantity, look)) for look in looks])
    for axes, quantity in (
        (accurate, lambda row: row["accuracies"][-1]),
        (flat, lambda row: row["measurements"][-1]["eigenvalues"][0]),
    ):
        ((x, y),) = [container.lines[0].get_data() for container in axes.containers]
        assert list(x) == [0, 0.05, 0.2]
        assert list(y) == pytest.approx([statistics.mean(map(quantity, own("sam", rho))) for rho in x])


@pytest.mark.usefixtures("flat")
def test_interrupted_run_goes_on_and_takes_more_radii(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--methods", "sam", "--seeds", "1", "--rhos", "0,0.1")
    whole = rows(bench(*arguments))
    real, measured = sharpness_training.measure, []

    def interrupted(*arguments: Any) -> Any:
        measured.append(arguments)
        if len(measured) == 3:  # in the second row
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sharpness_training, "measure", interrupted)
        assert bench(*arguments, "--restart").status == 130
    resumed = bench(*arguments)
    assert "1 of 3 rows are done already" in resumed.err
    assert rows(resumed) == whole
    more = bench(*arguments[:-1], "0,0.1,0.5")
    assert "3 of 4 rows are done already" in more.err
    assert rows(more)[:3] == whole
    other = bench(*arguments, "--rho", "0.1")
    assert (other.status, "was measured with other settings" in other.err) == (2, True)


def test_row_that_diverges_is_shown_and_the_others_go_on(bench: Callable[..., Any]) -> None:
    done = bench("--models", "resnet8_bn", "--methods", "sgd,sam", "--seeds", "1", "--rhos", "0.05", "--lr", "1e30")
    assert [row["error"] for row in rows(done)] == ["diverged: loss nan in step 2 of epoch 1"] * 2
    table = Path("out", "sharpness-digits.md").read_text()
    assert "| sam | 4 | fails | fails | fails | fails | fails | fails | fails | 0 of 1 |" in table
    assert "resnet8_bn, sam, rho 0.05, seed 0: diverged: loss nan" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "sgd,adam"), "'adam' is not a method; there are sgd, sgd_2x, extragradient, sam, sgd_converted"),
        (("--noise", "100"), "100 is not at least 0 and less than 100 percent"),
        (("--noise", "some"), "'some' is not a number; write for example 20"),
        (("--rho", "-1"), "-1 is not a finite number of at least 0"),
        (("--rhos", "0,inf"), "inf is not a finite number of at least 0"),
        (("--gamma", "1"), "1 is not in [0, 1)"),
        (("--ascents", "0"), "0 is not positive"),
        (("--measurements", "3"), "--measurements 3 are more than 2 epochs; choose fewer, or more --epochs"),
        (("--probes", "65"), "--probes 65 are more than the 64 training images; choose fewer"),
    ],
)
def test_wrong_arguments_are_answered_with_what_was_expected(
    bench: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert done.status == 2
    assert message in " ".join(done.err.split())


def test_quick_looks_at_real_landscapes(command: Callable[..., Any]) -> None:
    done = command("bench", "sharpness", "--quick", "--methods", "sam,sam_converted", "--json")
    found = rows(done)
    assert [case(row) for row in found] == [
        ("sam", 0.05, 0, 1),
        ("sam_converted", 0.05, 0, 1),
        ("sam", 0, 0, 1),
        ("sam", 0.2, 0, 1),
    ]
    for row in found:
        (look,) = row["measurements"]
        assert 0 < look["first_step"] <= look["sharpness"]
        assert look["eigenvalues"] == sorted(look["eigenvalues"], reverse=True)
        assert look["eigenvalues"][4] > 0
    settings = json.loads(done.out)["settings"]
    assert (settings["train_samples"], settings["probes"], settings["ascents"], settings["radius"]) == (
        256,
        16,
        1,
        0.05,
    )
    assert Path("runs", "bench", "sharpness-digits.png").stat().st_size > 0
