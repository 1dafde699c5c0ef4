from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from momentumnet.bench.measuring import timing
from momentumnet.files import whole_file


def test_table_json_and_plot(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)
    threads = torch.get_num_threads()
    options = ("--elements", "1000", "--threads", "1,2", "--gammas", "9/10,1/8", "--repeats", "1")
    done = command("bench", "kernel", *options, "--output", "out", "--json")
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", "kernel.json")) == values
    cases = {(row["gamma"], row["elements"], row["threads"]) for row in values["rows"]}
    assert cases == {(gamma, 1000, count) for gamma in ("9/10", "1/8") for count in (1, 2)}
    for row in values["rows"]:
        assert row["bytes_per_second"] == pytest.approx(28 * 1000 / row["seconds"])
        assert (row["rate_to_add"] == 1) == (row["operation"] == "x.add_(v)")
    assert torch.get_num_threads() == threads
    assert Path("out", "kernel.png").read_bytes().startswith(b"\x89PNG")
    assert "| reference step |" in Path("out", "kernel.md").read_text()
    assert [row["blocks"] for row in values["states"]] == [4, 24, 48] * 6
    assert "| bfloat16 | 9/10 | 24 |" in Path("out", "kernel.md").read_text()
