"""Runs command lines, each in a process of its own, forked from one that has imported everything.

A program: it reads a list of command lines as JSON, and writes for each its exit status and what it said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from momentumnet.bench.data import downloads
from momentumnet.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process has ended."""

    status: int
    out: str
    err: str


def commands(*lines: Sequence[str]) -> list[Ended]:
    """Runs ``momentumnet`` with each of the command lines, in the present folder and without network."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(lines),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_HOME": "hub"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Ended(*values) for values in json.loads(done.stdout)]


def _forked(number: int, line: Sequence[str]) -> list[Any]:
    names = [f".said-{number}-{stream}" for stream in ("out", "err")]
    process = os.fork()
    if process == 0:
        for handle, name in enumerate(names, start=1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), handle)
        try:
            status = main(line)
        except SystemExit as leaving:  # argparse
            status = int(leaving.code or 0)
        except Exception:  # noqa: BLE001 - or else the forked process would go on as its parent
            traceback.print_exc()
            status = 99
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    _, ended = os.waitpid(process, 0)
    return [os.waitstatus_to_exitcode(ended), *(Path(name).read_text() for name in names)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    downloads.reachable = lambda url: False
    found = [_forked(number, line) for number, line in enumerate(json.load(sys.stdin))]
    json.dump(found, sys.stdout)
