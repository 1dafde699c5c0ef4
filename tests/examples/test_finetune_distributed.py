from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import finetune_distributed
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_begin_and_one_goes_on(tmp_path: Path) -> None:
    alone = finetune_distributed.main(["--folder", str(tmp_path / "alone"), "--steps", "6"])
    script = str(ROOT / "examples" / "finetune_distributed.py")
    arguments = ["--folder", str(tmp_path / "run"), "--steps", "3"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    run = subprocess.run(
        [*launcher, script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )

    assert run.returncode == 0, run.stderr
    first = [float(value) for value in re.findall(r"2 processes: loss ([\d.]+)", run.stdout)]
    further = finetune_distributed.main(["--folder", str(tmp_path / "run"), "--steps", "6"])
    assert (len(first), len(further)) == (3, 3)
    assert first + further == pytest.approx(alone, rel=1e-5)
    assert alone[-1] < alone[0]


def test_it_runs_without_any_word_on_where_and_says_when_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert len(finetune_distributed.main(["--short"])) == 4
    assert (tmp_path / "runs" / "distributed" / "momentum.json").exists()
    capsys.readouterr()
    assert finetune_distributed.main(["--short"]) == []
    assert "nothing is left to do" in capsys.readouterr().out
