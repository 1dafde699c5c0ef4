from __future__ import annotations

from pathlib import Path

import pytest

from momentumnet.bench.peers import environment
from momentumnet.bench.peers.environment import Environment, InstallationError


def test_environment_sees_the_running_torch_and_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where python -c looks first
    made = Environment(tmp_path / "venv")
    own = made._packages() / "momentumnet.py"
    own.write_text("WHOSE = 'its own'")
    done = environment._run([str(made.python), "-c", "import momentumnet, torch; print(momentumnet.WHOSE)"])
    assert done.stdout == "its own\n", done.stderr


def test_pip_that_takes_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = object.__new__(Environment)
    made.python = tmp_path / "python"
    made.python.write_text("#!/bin/sh\nexec sleep 60\n")
    made.python.chmod(0o755)
    monkeypatch.setattr(environment, "PIP_SECONDS", 0.1)
    with pytest.raises(InstallationError, match="not done"):
        made.install(("x",))
