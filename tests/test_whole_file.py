from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from momentumnet.errors import CheckpointError, StorageError
from momentumnet.files import checkpoint_file, whole_file


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, writing fails from there on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(path: Path) -> bool:
    try:
        whole_file.read_json(path) if path.suffix == ".json" else checkpoint_file.load(path, {})
    except CheckpointError:
        return True
    return False


@pytest.mark.parametrize("name", ["results.json", "checkpoint.pt"])
def test_any_flipped_byte_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".json":
        whole_file.write_json(path, {"rows": [1, 2.5, "three"], "nested": {"of": None}})
    else:
        checkpoint_file.save(path, {}, {"weights": torch.arange(10), "epoch": 1})
    assert not refused(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        assert refused(path), place
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refused(path), length
    path.write_bytes(whole + b"\n")
    assert refused(path)


def test_json_is_json_and_comes_back(tmp_path: Path) -> None:
    values = {"rows": [1, 2.5, "drei äpfel"], "nested": {"of": None}}
    whole_file.write_json(tmp_path / "a.json", values)
    read = json.loads((tmp_path / "a.json").read_text())
    assert {key: read[key] for key in values} == values
    assert whole_file.read_json(tmp_path / "a.json") == values


def test_checkpoints_are_read_by_torch_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_file.save(path, {}, {"weights": torch.arange(10)})
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.arange(10))


@pytest.mark.parametrize("room", [0, 100, 20_000])
def test_full_disk_leaves_what_was_there_and_says_how_much_is_needed(tmp_path: Path, room: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_file.save(path, {}, {"weights": torch.zeros(10)}, keep_previous=True)
    before = path.read_bytes()
    message = r"checkpoint\.pt could not be written: File too large\. It takes 40\.\d KiB, and .* are free"
    with files_no_larger_than(room), pytest.raises(StorageError, match=message):
        checkpoint_file.save(path, {}, {"weights": torch.zeros(10_000)}, keep_previous=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_one_before_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2, 3):
        checkpoint_file.save(path, {}, {"epoch": epoch}, keep_previous=True)
    assert checkpoint_file.load(path, {})["epoch"] == 3
    assert checkpoint_file.load(checkpoint_file.previous(path), {})["epoch"] == 2


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/a\.txt cannot be written: No such file or directory"):
        whole_file.write_text(tmp_path / "gone" / "a.txt", "text")


def test_what_fails_while_it_writes_leaves_no_partial_file(tmp_path: Path) -> None:
    def fill(sink: whole_file.Sink) -> None:
        sink.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole_file.write(tmp_path / "a", fill)
    assert list(tmp_path.iterdir()) == []
