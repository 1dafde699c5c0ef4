from __future__ import annotations

from pathlib import Path

import pytest

from momentumnet.bench.data.texts import data_set_descriptions, python_topics, read_text


def test_texts_that_are_installed_are_there() -> None:
    assert len(python_topics()) > 300_000
    assert "digits" in data_set_descriptions()


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("né à l'aube", encoding="utf-8")
    assert read_text(path) == "né à l'aube"
    path.write_bytes("né".encode("latin-1"))
    with pytest.raises(ValueError, match=r"poem\.txt is no text in UTF-8"):
        read_text(path)
