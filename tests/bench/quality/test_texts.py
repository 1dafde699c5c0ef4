"""Texts as windows of characters: what is trained on, what is held out, and texts that cannot be used."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
import torch

from momentumnet.bench.quality.texts import OFFLINE, TextData, load_text

LETTERS = (string.ascii_lowercase * 40)[:1000]


@pytest.fixture
def letters(tmp_path: Path) -> TextData:
    path = tmp_path / "letters.txt"
    path.write_text(LETTERS + "ä" * 100, encoding="utf-8")
    return load_text(path, length=7, most=1000)


def text_of(data: TextData, window: torch.Tensor) -> str:
    return "".join(data.characters[token] for token in window)


def test_windows_are_the_text(letters: TextData) -> None:
    assert (letters.name, letters.characters) == ("letters", string.ascii_lowercase)
    batches = list(letters.train_batches(10, seed=3))
    windows = torch.cat([x for x, _ in batches])
    assert all(torch.equal(x, y) for x, y in batches)
    assert all(text_of(letters, window) in LETTERS for window in windows)
    assert len(windows) == len(letters.x_train) // 10 * 10 == 120  # 128 windows, less one for the offset
    held_out = "".join(text_of(letters, window) for x, _ in letters.test_batches(4) for window in x)
    assert held_out == LETTERS[900:998]  # the last tenth in whole windows, in order


def test_an_epoch_depends_on_its_seed_alone_and_begins_at_any_offset(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 1000))), encoding="utf-8")  # no character twice
    data = load_text(path, length=10)
    offsets = set()
    for seed in range(20):
        windows = torch.cat([x for x, _ in data.train_batches(1, seed)])
        assert torch.equal(windows, torch.cat([x for x, _ in data.train_batches(1, seed)]))
        assert len(windows) == len(data.x_train) == 89
        assert len(windows.unique()) == 890  # nothing twice
        assert windows.max() < 900  # nothing that is held out
        assert bool((windows.diff(dim=1) == 1).all())
        offsets.add(int(windows.min()))
    assert len(offsets) > 3
    assert offsets <= set(range(10))


def test_offline_text_comes_with_python() -> None:
    data = load_text(None, length=64, most=50_000)
    text = text_of(data, data.train[:2000])
    assert (data.name, len(data.train) + len(data.test)) == (OFFLINE, 50_000)
    assert text.startswith('The "assert" statement')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "short has 5 characters, of which the last tenth holds no window of 7; give 70 or more"),
        (b"\xff\xfe\x00" * 100, "is no text in UTF-8"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "short.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_text(path, length=7)
