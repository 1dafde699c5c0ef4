"""Links between files of the repository lead to files that are there; the site's own are checked by mkdocs as well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "examples", "csrc", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]*)\)")


def slug(heading: str) -> str:
    """A heading as an anchor, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken(page: Path, text: str) -> list[str]:
    found = []
    for link in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if not target.exists():
            found.append(link)
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            found += [] if anchor in map(slug, headings) else [link]
    return found


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/index.md) [b](docs/none.md) [c](docs/limits.md#values) [d](docs/limits.md#none)"
    assert broken(ROOT / "README.md", text) == ["docs/none.md", "docs/limits.md#none"]
