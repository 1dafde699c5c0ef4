"""The benchmark of couplings: a row for each rule, what is known of them, and a run that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from momentumnet.bench.couplings.networks import METHODS, REFERENCE


def test_quick_run_writes_a_row_for_each_method_and_resumes(command: Callable[..., Any], tmp_path: Path) -> None:
    place = ("--quick", "--output", str(tmp_path))
    command("bench", "couplings", *place)
    path = tmp_path / "couplings.json"
    rows = {row["method"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows.keys() == METHODS.keys()
    assert rows[REFERENCE]["time_to_stored"] == 1
    assert rows[REFERENCE]["change_in_training"] == rows["BDIA"]["change_in_eval"] == 0
    assert 0 < rows["momentum, gamma 1/64"]["change_in_eval"] < rows["Dr2Net, 1 and 1/64"]["change_in_eval"]
    assert rows["Dr2Net, 1 and 1/64"]["change_in_eval"] < rows["additive"]["change_in_eval"]
    assert [rows[name]["bits"] for name in ("BDIA", "Dr2Net, 7/8 and 1/8", "additive", REFERENCE)] == [1, 3, 0, None]
    before = path.stat().st_mtime_ns
    done = command("bench", "couplings", *place, "--resume")
    assert path.stat().st_mtime_ns == before
    assert "BDIA" in done.out
    refused = command("bench", "couplings", *place, "--resume", "--layers", "1")
    assert refused.status != 0
    assert "was measured with other settings" in refused.err
