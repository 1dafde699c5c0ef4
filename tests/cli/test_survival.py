"""What ends a run from outside: kills at random moments, a second run, a full disk. In processes of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from tests.cli import killed_runs

ROOT = Path(__file__).resolve().parents[2]
KILLS = 100
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_a_hundred_times_and_resumed_to_the_bit() -> None:
    done = subprocess.run(
        [sys.executable, killed_runs.__file__, str(KILLS)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = [line.split() for line in done.stdout.splitlines()]
    assert int(runs[-1][0]) >= KILLS
    assert len({digest for _, digest in runs}) == 1


def test_full_disk_is_one_line_that_says_how_much_is_needed(photos: Path) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, 4 * 2**20))

    options = ["--model", "mobilenet_v3_small", "--weights", "none", "--image-size", "32", "--batch-size", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "momentumnet", "finetune", "--data", photos, *options, "--output", "out"],
        env=ENVIRONMENT,
        preexec_fn=no_large_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert "out/checkpoint-momentum.pt could not be written: File too large. It takes 17." in lines[0]
    assert sorted(path.name for path in Path("out").iterdir()) == [".lock", "config.json"]
