from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.cli.bench import environment, peer_runs
from momentumnet.bench.peers.environment import Environment, InstallationError
from momentumnet.bench.peers.runs import SCRIPTS, Peer

# The plain rule, wrong in its own backward pass by a factor of 2; raises and ends where asked to.
FAKE = """
import os
from torch import nn

class Rule(nn.Module):
    def __init__(self, branches, gamma, stored):
        super().__init__()
        self.branches, self.gamma, self.stored = nn.ModuleList(branches), gamma, stored

    def forward(self, x):
        v = 0
        for branch in self.branches:
            v = self.gamma * v + (1 - self.gamma) * branch(x)
            x = x + v
        return x if self.stored else x * 2 - x.detach()

def build(branches, gamma, stored):
    print("something that a peer prints")
    if len(branches) == 3:
        raise RuntimeError("three is too many" + chr(10) + "for me")
    if len(branches) == 4:
        os._exit(7)
    return Rule(branches, gamma, stored)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "run_fake.py"
    path.write_text(FAKE)
    return path


def _peers(monkeypatch: pytest.MonkeyPatch, *peers: Peer) -> None:
    monkeypatch.setattr(peer_runs, "PEERS", peers)


def test_tables_json_and_plot(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fake: Path) -> None:
    own = Peer("this package", SCRIPTS / "run_momentumnet.py", "momentum")
    _peers(monkeypatch, own, Peer("fake", fake, "momentum"))
    options = ("--depths", "2,3", "--gammas", "1/2,9/10", "--repeats", "1", "--output", "out", "--json")
    done = command("bench", "peers", *options)
    assert done.status == 0
    values = json.loads(done.out)
    assert json.loads(Path("out", "peers.json").read_text()) == values
    rows = {(row["peer"], row["gamma"], row["depth"]): row for row in values["rows"]}
    assert len(rows) == 2 * 2 * 2
    for gamma in (0.5, 0.9):
        for depth in (2, 3):
            exact = rows["this package", gamma, depth]
            assert exact["gradient_error"] == 0
            assert 0 < exact["float64_error"] < 1e-5
            assert exact["step_seconds"] > 0
        assert rows["fake", gamma, 2]["gradient_error"] == pytest.approx(1, rel=1e-5)
        assert rows["fake", gamma, 3]["error"] == "RuntimeError: three is too many"
    assert Path("out", "peers.png").read_bytes().startswith(b"\x89PNG")
    table = Path("out", "peers.md").read_text()
    assert "| fake | 0.5 | 1e+00 | fails |" in table
    assert "fake fails at depth 3 at 0.5, 3 at 0.9: RuntimeError: three is too many" in table


def test_a_process_that_ends_keeps_the_rows_that_it_wrote(monkeypatch: pytest.MonkeyPatch, fake: Path) -> None:
    settings = {"device": "cpu", "width": 4, "batch": 2, "repeats": 1, "threads": 1}
    rows = peer_runs.measure(Peer("fake", fake, "momentum"), [(2, 0.5), (4, 0.5), (2, 0.9)], settings, None)
    assert rows[0]["step_seconds"] > 0
    assert [row["error"] for row in rows[1:]] == ["ended with status 7: "] * 2


def test_gradients_that_are_not_finite_are_an_error() -> None:
    row = peer_runs._finite({"gradient_error": float("nan"), "peak_bytes": 1})
    assert row == {"gradient_error": None, "peak_bytes": 1, "error": "the gradient is not finite"}


def test_a_package_that_cannot_be_installed_is_a_row(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fake: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    _peers(monkeypatch, Peer("absent", fake, "additive", ("momentumnet-no-such-package==1",)))
    options = ("--depths", "2,4", "--repeats", "1", "--output", "out", "--venv", "venv", "--json")
    done = command("bench", "peers", *options)
    assert done.status == 0
    rows = json.loads(done.out)["rows"]
    assert [(row["depth"], row["gamma"]) for row in rows] == [(2, None), (4, None)]
    assert all(row["error"].startswith("could not be installed: ERROR: No matching distribution") for row in rows)
    assert "absent fails at depth 2, 4: could not be installed" in Path("out", "peers.md").read_text()


def test_environment_sees_the_running_torch_and_comes_first(tmp_path: Path) -> None:
    made = Environment(tmp_path / "venv")
    own = made._packages() / "momentumnet.py"
    own.write_text("WHOSE = 'its own'")
    done = environment._run([str(made.python), "-c", "import momentumnet, torch; print(momentumnet.WHOSE)"])
    assert done.stdout == "its own\n", done.stderr


def test_environment_that_cannot_be_made(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _peers(monkeypatch, Peer("absent", Path("x.py"), "momentum", ("x",)))
    Path("file").write_text("")
    done = command("bench", "peers", "--depths", "2", "--venv", "file/venv", "--output", "out")
    assert done.status == 1
    assert "no virtual environment could be made" in done.err


def test_pip_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = object.__new__(Environment)
    made.python = tmp_path / "python"
    made.python.write_text("#!/bin/sh\nexec sleep 60\n")
    made.python.chmod(0o755)
    monkeypatch.setattr(environment, "PIP_SECONDS", 0.1)
    with pytest.raises(InstallationError, match="not done"):
        made.install(("x",))
