from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from momentumnet.bench.peers import runs
from momentumnet.bench.peers.runs import SCRIPTS, Peer
from momentumnet.files import whole_file
from tests.bench.peers.fake import write_fake


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return write_fake(tmp_path)


def _peers(monkeypatch: pytest.MonkeyPatch, *peers: Peer) -> None:
    monkeypatch.setattr(runs, "PEERS", peers)


def test_tables_json_and_plot(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fake: Path) -> None:
    own = Peer("this package", SCRIPTS / "run_momentumnet.py", "momentum")
    _peers(monkeypatch, own, Peer("fake", fake, "momentum"))
    options = ("--depths", "2,3", "--gammas", "1/2,9/10", "--repeats", "1", "--output", "out", "--json")
    done = command("bench", "peers", *options)
    assert done.status == 0
    values = json.loads(done.out)
    assert whole_file.read_json(Path("out", "peers.json")) == values
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


def test_environment_that_cannot_be_made(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _peers(monkeypatch, Peer("absent", Path("x.py"), "momentum", ("x",)))
    Path("file").write_text("")
    done = command("bench", "peers", "--depths", "2", "--venv", "file/venv", "--output", "out")
    assert done.status == 1
    assert "no virtual environment could be made" in done.err
