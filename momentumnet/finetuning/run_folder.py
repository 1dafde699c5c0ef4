"""The folder of a run: which one it is, and that no second run writes into it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from momentumnet.command_errors import MachineError, UsageError

RUNS = Path("runs")
LOCK = ".lock"
# What a run leaves there; by these a folder is known to hold one, and these go with --overwrite.
FILES = (
    "config.json",
    "checkpoint-*.pt",
    "*.safetensors",
    "metrics.csv",
    "report.json",
    "evaluation.json",
    "confusion.png",
    "tensorboard/*/events.*",
)


@contextmanager
def opened(output: Path | None, name: str, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """The folder of a run, locked until the end, and holding no other run unless that is resumed, or overwritten.

    One that is to be overwritten is there still: `clear` takes it away as soon as the new run can begin.

    Args:
        output: The folder that the user has named; None for ``runs/NAME``, or, as soon as that holds a run,
            ``runs/NAME-2`` and so on. Resumed is the last one of these.
        name: What a folder without a name of its own is called.
        resume: Whether to go on with the run that is there.
        overwrite: Whether the run that is there may go.

    Raises:
        UsageError: The folder holds a run, and it is to be neither resumed nor overwritten; or another process runs
            there.
        MachineError: The folder cannot be written to.
    """
    if output is not None:
        with _locked(output):
            if _holds_run(output) and not (resume or overwrite):
                raise UsageError(
                    f"{output} holds a run: go on with it by --resume, replace it by --overwrite, or choose another "
                    "--output"
                )
            yield output
        return
    folders = (RUNS / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    if resume or overwrite:
        folder = _last_run(folders)
        with _locked(folder):
            yield folder
        return
    for folder in folders:
        if _holds_run(folder):
            continue
        try:
            lock = _lock(folder)
        except UsageError:
            continue  # another run has just begun there
        try:
            yield folder
        finally:
            os.close(lock)
        return


def _last_run(folders: Iterator[Path]) -> Path:
    last = next(folders)
    for folder in folders:
        if not _holds_run(folder):
            return last
        last = folder
    return last


def _holds_run(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in FILES)


def clear(folder: Path) -> None:
    """Takes away the run in a folder that is open; what else lies there stays."""
    for pattern in FILES:
        for path in folder.glob(pattern):
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """Locks a folder for this process; the system lets go of it when the process ends, in whatever way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written to: {error.strerror}; choose another --output") from error
    try:
        _take(handle)
    except OSError:
        holder = os.read(handle, 32).decode(errors="replace").strip()
        os.close(handle)
        raise UsageError(
            f"another run (process {holder or 'unknown'}) works in {folder}: wait for it, or choose another --output"
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        os.lseek(handle, 1024, os.SEEK_SET)  # behind the number of the process, which others may read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _take(handle: int) -> None:
        # Of the process, unlike flock: the workers that load images do not inherit it.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
