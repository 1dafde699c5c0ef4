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

from momentumnet.bench.data.images import load_digits
from momentumnet.bench.sharpness import training as sharpness_training
from tests.cli.bench.studies import STUDIES, rows, run


@pytest.fixture
def bench(command: Callable[..., Any]) -> Callable[..., Any]:
    return partial(run, command, "sharpness")


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landscapes that are computed from a parameter, where a test is not about them."""
    STUDIES["sharpness"].simplified(monkeypatch)


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
    bench: Callable[..., Any], drawn: list[pyplot.Figure]
) -> None:
    found = rows(bench("--methods", "sgd,sam", "--seeds", "2", "--rhos", "0,0.05,0.2", "--noise", "20"))
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

    by_radius = [[row["losses"] for row in own("sam", rho)] for rho in (0, 0.05, 0.2)]
    assert by_radius[0] == [row["losses"] for row in own("sgd", None)]
    assert all(one != other for one, other in zip(*by_radius[1:], strict=True))
    file = Path("out", "sharpness-digits.md").read_text()
    assert "did not converge" not in file
    by_method, by_rho = file.split("# ")[1:]
    assert by_method.startswith("lenet300, 20 % of the training labels wrong\n")
    assert f"| sgd | 2 | {figures(own('sgd', None))} | 2 |" in by_method
    assert f"| sam | 4 | {figures(own('sam', 0.05))} | 2 |" in by_method
    lines = [line for line in by_rho.splitlines() if line.startswith("| 0")]
    assert lines == [f"| {rho:g} | {figures(own('sam', rho))} | 2 |" for rho in (0, 0.05, 0.2)]
    assert by_method.count("| sam |") == 1
    (figure,) = drawn
    assert_drawn(figure, own)


def assert_drawn(figure: pyplot.Figure, own: Callable[[str, float | None], list[dict[str, Any]]]) -> None:
    """The curves of the figure are the means of the rows; ``own`` gives those of a method and a radius."""
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


def test_labels_are_as_wrong_as_asked_and_eigenvalues_that_did_not_converge_are_counted(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[list[int]] = []

    def measured(model: nn.Module, batch: tuple[Tensor, Tensor], ascents: int) -> dict[str, Any]:
        probed.append(batch[1].tolist())
        values = {"first_step": 0.5, "sharpness": 1.0, "eigenvalues": [5.0, 4.0, 3.0, 2.0, 1.0]}
        return {**values, "converged": len(probed) > 1}

    monkeypatch.setattr(sharpness_training, "measure", measured)
    rows(bench("--methods", "sgd", "--seeds", "2", "--noise", "60", "--probes", "64"))
    assert "In 1 of 4 measurements the eigenvalues did not converge to 0.01." in (
        Path("out", "sharpness-digits.md").read_text()
    )
    right = load_digits().part(train=64, test=50).y_train.tolist()
    wrong = [{place for place, label in enumerate(labels) if label != right[place]} for labels in probed]
    assert [len(places) for places in wrong] == [38] * 4  # 60 % of 64
    assert wrong[0] == wrong[1] != wrong[2] == wrong[3]  # two looks of each seed


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
