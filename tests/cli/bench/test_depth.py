from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.bench.depth.simulate import GIANTS, Giant
from momentumnet.bench.depth.table import table
from momentumnet.bench.measuring.training_step import OVER_BUDGET
from momentumnet.bench.networks.measured import FAMILIES, family
from momentumnet.files import whole_file

METHODS = ("stored", "checkpoint", "checkpoint √n", "momentum 9/10", "momentum 1/8")


@pytest.mark.parametrize("family", FAMILIES)
def test_table_json_and_plot(command: Callable[..., Any], family: str) -> None:
    arguments = ("--family", family, "--depths", "9,4", "--repeats", "1", "--output", "out", "--json")
    done = command("bench", "depth", *arguments)
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", f"depth-{family}.json")) == values
    peak = {(row["depth"], row["method"]): row["peak_bytes"] for row in values["rows"]}
    assert sorted(peak) == sorted((blocks, method) for blocks in (4, 9) for method in METHODS)
    growth = {method: peak[9, method] - peak[4, method] for method in METHODS}
    assert growth["momentum 9/10"] <= growth["momentum 1/8"] < growth["checkpoint"] < growth["stored"]
    assert all(row["step_seconds"] > 0 for row in values["rows"])
    assert Path("out", f"depth-{family}.png").read_bytes().startswith(b"\x89PNG")
    assert "| momentum 9/10 |" in Path("out", f"depth-{family}.md").read_text()
    assert "momentum 9/10" in done.err


@pytest.mark.parametrize("family", FAMILIES)
def test_all_methods_run_under_autocast(command: Callable[..., Any], family: str) -> None:
    """As `benchmarks/gpu_check.sh depth` asks for it: in half precision convolutions change their input's type."""
    options = ("--family", family, "--depths", "2", "--repeats", "1", "--gammas", "1/8", "--dtype", "bfloat16")
    done = command("bench", "depth", *options, "--output", "out", "--json")
    assert done.status == 0
    assert not [row["error"] for row in json.loads(done.out)["rows"] if "error" in row]


def test_budget_ends_a_method_and_the_others_go_on(command: Callable[..., Any]) -> None:
    # mlp blocks, 256 x 64 floats: stored activations take 256 KiB and 128 KiB more a block, checkpoints 64 KiB.
    options = ("--family", "mlp", "--depths", "2,8,16,32", "--budget", "1280KiB", "--gammas", "9/10", "--repeats", "1")
    done = command("bench", "depth", *options, "--output", "out", "--json")
    assert done.status == 0
    rows = json.loads(done.out)["rows"]
    for method, tried, fits in (("stored", [2, 8], [2]), ("checkpoint", [2, 8, 16], [2, 8])):
        own = [row for row in rows if row["method"] == method]
        assert [row["depth"] for row in own] == tried
        assert [row["depth"] for row in own if row["step_seconds"] is not None] == fits
        assert all((row["peak_bytes"] > 1280 * 1024) == ("error" in row) for row in own)
        last = f"{method}: {fits[-1]} blocks"
        assert last in done.err
        assert last in Path("out", "depth-mlp.md").read_text()
    assert [row["depth"] for row in rows if row["method"] == "momentum 9/10"] == [2, 8, 16, 32]
    assert "momentum 9/10: 32 blocks" in done.err


def test_a_method_that_fails_is_not_said_not_to_fit() -> None:
    row = {"peak_bytes": None, "saved_bytes": None, "step_seconds": None}
    rows = [
        {**row, "depth": 8, "method": "compiled", "peak_bytes": 1 << 20, "step_seconds": 0.1},
        {**row, "depth": 16, "method": "compiled", "error": "blocks.0 raised BackendCompilerFailed"},
        {**row, "depth": 8, "method": "stored", "peak_bytes": 1 << 24, "error": OVER_BUDGET},
    ]
    compiled, stored = table(rows, "mlp", (2, 16), 1 << 21).notes[1:]
    assert compiled.endswith("peak 1.00 MiB (16 blocks: blocks.0 raised BackendCompilerFailed).")
    assert stored.endswith("none (8 blocks do not fit).")


def test_resume_measures_only_what_is_missing(command: Callable[..., Any]) -> None:
    options = ("bench", "depth", "--family", "mlp", "--repeats", "1", "--output", "out", "--json", "--gammas", "1/8")
    first = json.loads(command(*options, "--depths", "2").out)["rows"]
    second = json.loads(command(*options, "--depths", "2,3", "--resume").out)["rows"]
    assert second[: len(first)] == first
    assert {row["depth"] for row in second[len(first) :]} == {3}


def test_resume_refuses_results_of_other_settings(command: Callable[..., Any]) -> None:
    options = ("bench", "depth", "--family", "mlp", "--depths", "2", "--repeats", "1", "--output", "out", "--resume")
    assert command(*options, "--gammas", "1/8").status == 0
    done = command(*options, "--gammas", "9/10")
    assert done.status == 2
    assert "other settings" in done.err
    Path("out", "depth-mlp.json").write_text("{}")
    done = command(*options, "--gammas", "1/8")
    assert done.status == 2
    assert "depth-mlp.json is damaged" in done.err
    whole_file.write_json(Path("out", "depth-mlp.json"), {"command": "bench depth"})
    assert "does not hold the results" in command(*options, "--gammas", "1/8").err


def test_steps_that_are_not_run(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network = family("mlp", 12)
    monkeypatch.setitem(GIANTS, "vit-22b", Giant(network.build, network.example, torch.float32))
    before = torch.get_default_dtype()
    done = command("bench", "depth", "--simulate", "vit-22b", "--output", "out", "--json")
    assert done.status == 0
    stored, least = json.loads(done.out)["rows"]
    assert (stored["method"], least["method"]) == ("stored", "least")
    # 12 blocks of a narrow layer each save their input and the tanh, 256 x 64 floats each.
    assert stored["saved_bytes"] == pytest.approx(12 * 2 * 256 * 64 * 4, rel=0.1)
    assert least["saved_bytes"] < stored["saved_bytes"] / 2
    assert least["peak_bytes"] < stored["peak_bytes"]
    assert stored["estimated_time_to_stored"] == 1.0 < least["estimated_time_to_stored"]
    assert "| vit-22b | least |" in Path("out", "depth-simulated.md").read_text()
    assert torch.get_default_dtype() is before
