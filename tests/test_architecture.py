"""The tree in docs/architecture.md is the tree: what it names is there, the rooms of the package in full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "momentumnet"
# Each of these, and the folders in it.
IN_FULL = (
    *("arithmetic", "recompute", "core", "loss", "streams", "planner", "conversion", "description", "schedules"),
    *("files", "init", "optim", "landscape", "hf", "lightning", "prune", "finetuning"),
)
FOLDERS = sorted(
    path.parent.relative_to(PACKAGE).as_posix() for room in IN_FULL for path in (PACKAGE / room).rglob("__init__.py")
)


def tree() -> dict[str, set[str]]:
    """The names of files by folder, both below ``momentumnet``, as the tree says."""
    text = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    found: dict[str, set[str]] = {}
    folders: list[tuple[int, str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        words = re.match(r"(?:[\w/]+(?:\.py|/) ?)+", line.strip())
        for word in [] if words is None else words.group().split():
            if word.endswith("/"):
                folders.append((indent, word.strip("/")))
            else:
                found.setdefault("/".join(name for _, name in folders), set()).add(word)
    return found


@pytest.mark.parametrize(("folder", "names"), tree().items(), ids=tree())
def test_what_the_tree_names_is_there(folder: str, names: set[str]) -> None:
    assert {name for name in names if not (ROOT / folder / name).is_file()} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_rooms_are_named_in_full(folder: str) -> None:
    there = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    assert tree().get(f"momentumnet/{folder}", set()) == there
