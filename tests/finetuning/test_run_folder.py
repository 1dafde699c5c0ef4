from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from momentumnet.command_errors import MachineError, UsageError
from momentumnet.finetuning import run_folder

HOLD = """
import sys, time
from pathlib import Path
from momentumnet.finetuning import run_folder
output = Path(sys.argv[1]) if len(sys.argv) > 1 else None
with run_folder.opened(output, "net", resume=False, overwrite=False) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another_process(*output: str) -> Iterator[subprocess.Popen[str]]:
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{HOLD}", *output],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() != ""
        yield process
        process.kill()


def folder_of(output: Path | None = None, *, resume: bool = False, overwrite: bool = False) -> str:
    with run_folder.opened(output, "net", resume=resume, overwrite=overwrite) as folder:
        if overwrite:
            run_folder.clear(folder)
        (folder / "report.json").touch()
        return str(folder)


def test_each_run_without_a_folder_of_its_own_gets_the_next_one() -> None:
    assert [folder_of() for _ in range(3)] == ["runs/net", "runs/net-2", "runs/net-3"]
    assert folder_of(resume=True) == "runs/net-3"


def test_resumed_before_anything_was_written() -> None:
    assert folder_of(resume=True) == "runs/net"


def test_named_folder_with_a_run_asks(tmp_path: Path) -> None:
    Path("out").mkdir()
    Path("out", "holiday.jpg").touch()
    assert folder_of(Path("out")) == "out"  # it holds files, but no run
    with pytest.raises(UsageError, match="out holds a run: go on with it by --resume, replace it by --overwrite"):
        folder_of(Path("out"))
    Path("out", "checkpoint-momentum.pt").touch()
    assert folder_of(Path("out"), resume=True) == "out"
    assert folder_of(Path("out"), overwrite=True) == "out"
    assert sorted(path.name for path in Path("out").iterdir()) == [".lock", "holiday.jpg", "report.json"]


def test_folder_of_a_living_process_is_refused_and_that_of_a_dead_one_is_not() -> None:
    with held_by_another_process("out") as process:
        with pytest.raises(UsageError, match=f"another run \\(process {process.pid}\\) works in out"):
            folder_of(Path("out"), overwrite=True)
        with held_by_another_process():
            assert folder_of() == "runs/net-2"
    assert folder_of(Path("out")) == "out"  # killed, without a chance to tidy up


def test_folder_that_cannot_be_written_to() -> None:
    Path("file").touch()
    with pytest.raises(MachineError, match="file/out cannot be written to: Not a directory; choose another --output"):
        folder_of(Path("file", "out"))
