from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")
ROOT = Path(__file__).resolve().parents[2]


def offered(tmp_path: Path, line: str) -> list[str]:
    """What a shell is offered behind ``line``."""
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "found"), "_ARGCOMPLETE_IFS": "\n"}
    words = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SHELL": "bash"}
    done = subprocess.run(
        [sys.executable, "-m", "momentumnet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **asked, **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    return [word.strip() for word in (tmp_path / "found").read_text().splitlines()]


def test_a_shell_is_offered_commands_options_and_models(tmp_path: Path) -> None:
    assert offered(tmp_path, "momentumnet ev") == ["evaluate"]
    assert offered(tmp_path, "momentumnet finetune --prec") == ["--precision"]
    assert offered(tmp_path, "momentumnet inspect resnet5") == ["resnet50"]
