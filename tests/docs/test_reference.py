"""The API reference has every public name of every package, no other; their docstrings have examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import momentumnet as mn

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "api"
PACKAGES = ("momentumnet", *(f"momentumnet.{name}" for name in mn._PACKAGES))
EXTRAS = {"momentumnet.hf": "transformers", "momentumnet.lightning": "lightning"}


def package(name: str) -> types.ModuleType:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason=f"pip install 'momentumnet[{name.split('.')[1]}]'")
    return importlib.import_module(name)


def public(module: types.ModuleType) -> dict[str, Any]:
    """The public names of a package, packages in it left out: they have pages of their own."""
    values = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in values.items() if not isinstance(value, types.ModuleType)}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_stands_in_the_reference(name: str) -> None:
    page = (REFERENCE / f"{name.split('.')[-1]}.md").read_text()
    entries = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert sorted(entries) == sorted(f"{name}.{public_name}" for public_name in public(package(name)))


def test_every_package_has_its_page() -> None:
    assert {path.stem for path in REFERENCE.glob("*.md")} == {name.split(".")[-1] for name in PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_docstring_has_an_example(name: str) -> None:
    documented = {
        public_name: value
        for public_name, value in public(package(name)).items()
        if inspect.isclass(value) or inspect.isroutine(value)
    }
    assert documented
    assert [name for name, value in documented.items() if ">>> " not in (inspect.getdoc(value) or "")] == []


def examples() -> list[Any]:
    """The examples of all modules in which a public name stands, of each function and class by itself."""
    found = []
    for name in PACKAGES:
        if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
            continue
        homes = {value.__module__ for value in public(importlib.import_module(name)).values() if _has_home(value)}
        for home in sorted(homes):
            module = importlib.import_module(home)
            found += [test for test in doctest.DocTestFinder().find(module, home) if test.examples]
    return list({test.name: test for test in found}.values())


def _has_home(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name.removeprefix("momentumnet."))
def test_examples_of_docstrings_run(
    test: doctest.DocTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert not result.failed, capsys.readouterr().out


def test_no_example_is_skipped() -> None:
    skipped = [test.name for test in examples() if any(doctest.SKIP in e.options for e in test.examples)]
    assert skipped == []
