from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.cli import depth
from momentumnet.cli.plot import _spread


@pytest.mark.parametrize("family", depth.FAMILIES)
def test_table_json_and_plot(command: Callable[..., Any], family: str) -> None:
    done = command(
        "bench", "depth", "--family", family, "--depths", "6,2", "--repeats", "1", "--output", "out", "--json"
    )
    assert done.status == 0
    values = json.loads(done.out)
    assert json.loads(Path("out", f"depth-{family}.json").read_text()) == values
    peak = {(row["depth"], row["method"]): row["peak_bytes"] for row in values["rows"]}
    methods = ("stored", "checkpoint", "momentum 9/10", "momentum 1/8")
    assert sorted(peak) == sorted((blocks, method) for blocks in (2, 6) for method in methods)
    growth = {method: peak[6, method] - peak[2, method] for method in methods}
    assert growth["momentum 9/10"] <= growth["momentum 1/8"] < growth["checkpoint"] < growth["stored"]
    assert Path("out", f"depth-{family}.png").read_bytes().startswith(b"\x89PNG")
    assert "momentum 9/10" in done.err


@pytest.mark.parametrize("family", depth.FAMILIES)
def test_stored_and_checkpoint_compute_the_same(family: str) -> None:
    torch.manual_seed(0)
    blocks = depth.stack(family, 2)
    x = depth.example_input(family)
    methods = depth.methods([Fraction(1, 2)])
    assert torch.equal(methods["stored"](blocks, x)(x), methods["checkpoint"](blocks, x)(x))
    assert not torch.equal(methods["momentum 1/2"](blocks, x)(x), methods["stored"](blocks, x)(x))


def test_labels_are_moved_apart_in_order() -> None:
    assert _spread([5.0, 1.0, 1.1, 1.05], smallest=0.5) == pytest.approx([5.0, 1.0, 2.0, 1.5])
    assert _spread([1.0, 2.0], smallest=0.5) == [1.0, 2.0]
