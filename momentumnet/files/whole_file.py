"""Files that are written whole or not at all, and that tell when a byte of them has changed since."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from momentumnet.errors import CheckpointError, StorageError
from momentumnet.memory import format_bytes

MARK = "momentumnet-sha256:"
# Stands in a file until its checksum is known: that of the file with the zeros in it.
UNSIGNED = MARK + "0" * 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Sink(Protocol):
    """What content is written to."""

    def write(self, data: bytes, /) -> int:
        """Takes the next bytes."""

    def flush(self) -> None:
        """Does nothing: the file is brought to the disk when it is whole."""


class _Counting:
    """Passes bytes on to a file, and when that can take no more, goes on counting how many there would have been."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.count = 0
        self.error: OSError | None = None

    def write(self, data: bytes, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        self.count += size
        try:
            while len(rest) and self.error is None:
                rest = rest[self._file.write(rest) :]  # without a buffer it may take a part only
        except OSError as error:  # raised later: torch.save calls this from C++
            self.error = error
        return size

    def flush(self) -> None:
        pass


def write(path: Path, fill: Callable[[Sink], object], *, keep: Path | None = None) -> None:
    """Writes a file in place of ``path``: a process killed at any moment leaves the old one or the new one.

    Killed between the two renames of ``keep``, it leaves the old one there.

    Args:
        path: Where it goes; a file ``path`` + ``.partial`` beside it is written first, and brought to the disk.
        fill: Writes the content. Where that holds ``UNSIGNED``, the checksum of the file takes its place.
        keep: Where the file that stood at ``path`` goes; None where nobody needs it any more.

    Raises:
        StorageError: The disk is full, or the file cannot be written; the partial one is gone, and ``path`` is what it
            was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note"
        >>> write(path, lambda sink: sink.write(b"remember " + UNSIGNED.encode()))
        >>> verify(path)
    """
    partial = path.with_name(path.name + ".partial")
    needed = 0
    try:
        with partial.open("w+b", buffering=0) as file:
            sink = _Counting(file)
            fill(sink)
            needed = sink.count
            if sink.error is not None:
                raise sink.error
            _sign(file)
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
        _bring_folder_to_disk(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(_unwritten(path, error, needed)) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text in place of ``path``, as `write` does."""
    write(path, lambda sink: sink.write(text.encode()))


def write_json(path: Path, values: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Writes plain values as one JSON object, with a checksum as ``sha256``, as `write` does."""
    write_text(path, json.dumps({"sha256": UNSIGNED, **values}, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, without the checksum.

    Raises:
        CheckpointError: A byte has changed since, or something else wrote the file.
    """
    verify(path)
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    values.pop("sha256", None)
    return values


def verify(path: Path) -> None:
    """Compares a file with the checksum that it carries.

    Raises:
        CheckpointError: They differ, there is none, or the file cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = _place(content)
            if place is None:
                raise CheckpointError(f"{path} is damaged, or was not written by this version: it carries no checksum")
            if content[place : place + 64] != _digest(content, place):
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that it carries")
    except ValueError:  # of mmap
        raise CheckpointError(f"{path} is damaged: it is empty") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _sign(file: FileIO) -> None:
    if not file.tell():
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _place(content)
        digest = None if place is None else _digest(content, place)
    if place is not None and digest is not None:
        file.seek(place)
        file.write(digest)


def _place(content: mmap.mmap) -> int | None:
    """Where the checksum stands."""
    at = content.find(MARK.encode())
    return None if at < 0 or at + len(UNSIGNED) > len(content) else at + len(MARK)


def _digest(content: mmap.mmap, place: int) -> bytes:
    """The checksum of a file with zeros at ``place``, in hexadecimal digits."""
    sha = hashlib.sha256()
    with memoryview(content) as view:
        for part in (view[:place], b"0" * 64, view[place + 64 :]):
            sha.update(part)
            if isinstance(part, memoryview):
                part.release()
    return sha.hexdigest().encode()


def _bring_folder_to_disk(folder: Path) -> None:
    """Makes a rename last; where folders cannot be opened (Windows) the system does that by itself."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritten(path: Path, error: OSError, needed: int) -> str:
    reason = error.strerror or str(error)
    if error.errno not in _NO_ROOM:
        return f"{path} cannot be written: {reason}"
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path} could not be written: {reason}. It takes {format_bytes(needed)}, and {format_bytes(free)} are free "
        "there. What was there before is there still"
    )
