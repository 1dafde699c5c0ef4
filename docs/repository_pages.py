"""Pages of the site that stand elsewhere in the repository, and the links between all of them; a hook of mkdocs.

A link in a page is one that works where the page is read in the repository: relative to the file. In the site ``docs/``
is the root, and beside it stand the files that pages link to: results, examples, CONTRIBUTING.md. Programs become pages
that show them. Links to folders become plain text, as a folder is no page.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_DOCS = "docs/"
_START = {"README.md": "docs/index.md"}  # the repository's front page and the site's
_LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_PAGE, _FIGURES = ".md", {".png", ".svg", ".json", ".jsonl", ".csv"}
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml"}

# For each page of the site, by its place there: the path of its file in the repository.
_sources: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """The site's name says of which version it is."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "momentumnet" / "__init__.py").read_text())
    if version is None:
        raise ValueError("momentumnet/__init__.py has no __version__")
    config.site_name = f"momentumnet {version.group(1)}"
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add every file outside ``docs/`` that a page links to, and those that these link to."""
    _sources.clear()
    _sources.update({file.src_uri: _DOCS + file.src_uri for file in files})
    named = [f"{path}" for path in _in_navigation(config.nav) if path not in _sources]
    waiting = [source for source in _sources.values() if source.endswith(_PAGE)] + named
    while waiting:
        source = waiting.pop()
        if source not in _sources.values():
            place = _place(source)
            _sources[place] = source
            files.append(_added(source, place, config))
        if source.endswith(_PAGE):
            linked = (_resolved(source, link["target"]) for link in _LINK.finditer((ROOT / source).read_text()))
            waiting += [path for path in linked if path not in _sources.values() and (ROOT / path).is_file()]
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point the links of a page to places in the site."""
    source = _sources[page.file.src_uri]

    def moved(link: re.Match[str]) -> str:
        text = _LINK.sub(moved, link["text"]) if link["text"].startswith("![") else link["text"]
        target = _resolved(source, link["target"])
        if not target:
            return link.group()
        if (ROOT / target).is_dir():
            return text
        place = posixpath.relpath(_place(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"[{text}]({place}{link['anchor'] or ''})"

    return _outside_code(markdown, moved) if source.endswith(_PAGE) else markdown


def _in_navigation(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _in_navigation(item)


def _resolved(source: str, target: str) -> str:
    """The path in the repository that a link of a file there leads to; empty for one that leads away."""
    if re.match(r"[a-z]+:|/", target):
        return ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return _START.get(path, path)


def _place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path.startswith(_DOCS):
        return path[len(_DOCS) :]
    suffix = posixpath.splitext(path)[1]
    return path if suffix == _PAGE or suffix in _FIGURES else path + _PAGE


def _added(source: str, place: str, config: Any) -> File:
    if place == source:
        return File.generated(config, place, abs_src_path=str(ROOT / source))
    language = _LANGUAGES.get(posixpath.splitext(source)[1], "text")
    text = (ROOT / source).read_text()
    return File.generated(config, place, content=f"# {source}\n\n````{language}\n{text}\n````\n")


def _outside_code(markdown: str, moved: Any) -> str:
    """The text with its links replaced, but in blocks of code."""
    parts = re.split(r"(^```.*?^```\s*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)
