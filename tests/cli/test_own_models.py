"""Models that the command line is given by a function of the user's, and libraries that are missing for others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from momentumnet.finetuning import own_code

MINE = """\
import torch
from torch import nn

CALLS = []


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.inner(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(*[Block() for _ in range(6)])

    def forward(self, x, mask=None, *, scale=None):
        x = self.blocks(self.stem(x))
        x = x if mask is None else x * mask.unsqueeze(-1)
        return {"logits": self.head(x if scale is None else x * scale)}


class Restless(Network):
    def forward(self, x):
        CALLS.append(1)
        return super().forward(x)["logits"] * len(CALLS)


def tokens(): return nn.Sequential(nn.Embedding(4, 8), network())
def network(): return Network()
def restless(): return Restless()
def inputs(): return torch.randn(16, 8), torch.ones(16)
def keywords(): return {"x": torch.randn(4, 8), "scale": torch.ones(4, 1)}
def raises(): raise ValueError("no weights here")
def number(): return 7
def needs(width): return Network()
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path: Path) -> Iterator[None]:
    """A module of the user's in the current folder, which is not among those that Python looks into."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in ("mine", "broken", "lacking"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "inputs",
    [
        ("16x8",),
        ("16x8", "16"),
        ("x=16x8", "scale=16x1:float32"),
        ("x=16x8", "mask=16:int64"),
        ("mine:inputs",),
        ("mine:keywords",),
    ],
)
def test_a_function_of_ones_own(command: Callable[..., Any], inputs: tuple[str, ...]) -> None:
    given = [word for shape in inputs for word in ("--input", shape)]
    done = command("inspect", "mine:network", *given, "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["model"] == "mine:network"
    assert [(row["path"], row["blocks"]) for row in values["streams"]] == [("blocks", 6)]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("elsewhere:network",), 2, "there is no module elsewhere in "),
        (("broken:network",), 2, "module broken cannot be imported: ZeroDivisionError: division by zero"),
        (("lacking:network",), 2, "module lacking cannot be imported: ModuleNotFoundError: No module named"),
        (("mine:netwrok",), 2, "module mine has no function 'netwrok'; did you mean network or Network?"),
        (("mine:CALLS",), 2, "module mine has no function 'CALLS'"),
        (("mine:raises",), 2, "mine:raises raised ValueError: no weights here (it is called without arguments)"),
        (("mine:needs",), 2, "mine:needs raised TypeError: needs() missing 1 required positional argument"),
        (("mine:number",), 2, "mine:number returned a value of type int; it has to return an nn.Module"),
        (("mine:network",), 2, "mine:network does not say what it takes: give --input"),
        (
            ("mine:network", "--input", "mine:number"),
            2,
            "--input mine:number returned a value of type int; it has to return",
        ),
        (("mine:network", "--input", "mine:inputs", "--input", "16x8"), 2, "returns all inputs"),
        (("mine:network", "--input", "x=16x8", "--input", "16"), 2, "give each input by a keyword of its own, or all"),
        (("mine:network", "--input", "x=16x8", "--input", "x=16x8"), 2, "give each input by a keyword of its own"),
        (("mine:network", "--input", "16x9"), 2, "mine:network does not accept the input 16,9: RuntimeError: "),
        (("mine:tokens", "--input", "2x8"), 2, "; integers are named as in 2x16:int64"),
        (("mine:network", "--input", "y=16x8"), 2, "mine:network does not accept the input y=16,8: TypeError: "),
    ],
)
def test_what_cannot_be_used_is_one_line(
    command: Callable[..., Any], arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = command("inspect", *arguments)
    assert done.status == status
    (line,) = done.err.splitlines()
    assert line.startswith("momentumnet: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine:",), "names nothing behind mine:"),
        (("no name:here",), "is neither timm:NAME, hf:PATH nor module:function"),
        (("mine:network", "--input", "2xa"), "write for example 2x3x224x224, 2x16:int64, input_ids=2x16:int64 or"),
        (("mine:network", "--input", "2x16:int63"), "'int63' in '2x16:int63' is not one of float32, "),
        (("mine:network", "--input", "a-b=2x16"), "'a-b' in 'a-b=2x16' is no keyword"),
        (("mine:network", "--input", "=2x16"), "'' in '=2x16' is no keyword"),
    ],
)
def test_what_cannot_be_read(command: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    done = command("inspect", *arguments)
    assert done.status == 2
    assert message in done.err.splitlines()[-1]


def test_the_largest_batch_of_shapes(command: Callable[..., Any]) -> None:
    options = ("inspect", "mine:network", "--budget", "64KiB", "--largest-batch", "--json")
    done = command(*options, "--input", "x=2x8", "--input", "scale=2x1")
    assert done.status == 0, done.err
    assert json.loads(done.out)["largest_batch"] > 2
    done = command(*options, "--input", "mine:inputs")
    assert done.status == 2
    assert "--largest-batch tries batch sizes" in done.err


def test_check_of_ones_own(command: Callable[..., Any]) -> None:
    done = command("inspect", "mine:network", "--input", "2048x8", "--check", "--json")
    assert done.status == 0, done.err
    values = json.loads(done.out)
    assert values["passed"]
    assert values["gradient_error"] <= 1e-6
    before, after = values["networks"]["unconverted"], values["networks"]["momentum"]
    assert after["saved_bytes"] < 0.6 * before["saved_bytes"]
    assert min(before["peak_bytes"], after["peak_bytes"], before["seconds"], after["seconds"]) > 0
    assert 0 < values["output_change"] < 0.5
    assert "Largest error of a gradient against stored activations, of 28 parameters: " in done.err


def test_check_that_fails_ends_with_1(command: Callable[..., Any]) -> None:
    done = command("inspect", "mine:restless", "--input", "16x8", "--check", "--json")
    assert done.status == 1
    values = json.loads(done.out)
    assert not values["passed"]
    assert values["gradient_error"] > 1e-2
    assert done.err.splitlines()[-1].startswith(
        "momentumnet: error: the gradients of mine:restless differ from those with stored activations: of "
    )


def test_check_with_a_budget_and_what_does_not_go_with_it(command: Callable[..., Any]) -> None:
    done = command("inspect", "mine:network", "--input", "512x8", "--check", "--budget", "least", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["passed"]
    done = command("inspect", "mine:network", "--input", "2x8", "--check", "--budget", "1GiB", "--largest-batch")
    assert (done.status, "leave out --largest-batch" in done.err) == (2, True)
    done = command("inspect", "fasterrcnn_mobilenet_v3_large_320_fpn", "--input", "1x3x64x64", "--check")
    assert (done.status, "computes its loss from targets" in done.err) == (2, True)


def test_missing_library_is_3(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra, model in (("timm", "timm", "timm:vit_tiny_patch16_224"), ("transformers", "hf", "hf:.")):
        monkeypatch.setitem(sys.modules, name, None)
        done = command("inspect", model)
        assert done.status == 3
        (line,) = done.err.splitlines()
        assert f'{model} needs {name}, which is not installed: pip install "momentumnet[{extra}]"' in line


def test_packages_that_are_broken_are_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        own_code.package("half", extra="hf", asked="timm:x")


def test_bench_step_of_ones_own(command: Callable[..., Any]) -> None:
    options = ("bench", "step", "--repeats", "1", "--gammas", "1/8", "--output", "bench", "--json")
    done = command(*options, "--model", "mine:network", "--input", "x=64x8", "--input", "scale=64x1")
    assert done.status == 0, done.err
    rows = {row["method"]: row for row in json.loads(done.out)["rows"]}
    assert {"stored", "checkpoint", "momentum 1/8"} <= rows.keys()
    assert all(row["gradient_error"] <= 1e-6 and "error" not in row for row in rows.values() if row["gradient_error"])
    assert rows["momentum 1/8"]["saved_bytes"] < rows["stored"]["saved_bytes"]
    assert {row["network"] for row in rows.values()} == {"mine:network"}
    for wrong, message in (
        (("--input", "2x8"), "--input is for a --model"),
        (("--network", "gpt-12"), "leave out one"),
    ):
        model = ("--model", "mine:network") if "--network" in wrong else ()
        done = command(*options, *model, *wrong)
        assert (done.status, message in done.err) == (2, True)
