from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet import source_tree
from momentumnet.arithmetic.compiled import libraries

LAYER = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that holds a momentumnet with kernels, behind sources that have none."""
    site = tmp_path / "site-packages"
    (site / "momentumnet" / "_kernels").mkdir(parents=True)
    (site / "momentumnet" / "__init__.py").touch()
    (site / "momentumnet" / "_kernels" / source_tree.LIBRARY).touch()
    (site / "momentumnet-1.0.dist-info").mkdir()
    (site / "momentumnet-1.0.dist-info" / "METADATA").write_text("Name: momentumnet\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(libraries, "FOLDER", tmp_path / "sources" / "_kernels")
    source_tree.warn_once.cache_clear()
    return site / "momentumnet"


def convert() -> None:
    model = nn.TransformerEncoder(LAYER, 2, enable_nested_tensor=False)
    mn.convert(model, torch.randn(1, 2, 8))


def test_convert_warns_once_of_kernels_that_an_installation_has(installed: Path) -> None:
    with pytest.warns(mn.MomentumNetWarning, match=f"in front of the installation in {installed}"):
        convert()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert()


@pytest.mark.usefixtures("installed")
def test_sources_with_kernels_are_meant(tmp_path: Path) -> None:
    (tmp_path / "sources" / "_kernels").mkdir(parents=True)
    (tmp_path / "sources" / "_kernels" / source_tree.LIBRARY).touch()
    assert source_tree.kernels_left_behind() == ""


def test_an_installation_without_kernels_is_no_better(installed: Path) -> None:
    (installed / "_kernels" / source_tree.LIBRARY).unlink()
    assert source_tree.shadowed() == installed
    assert source_tree.kernels_left_behind() == ""


def test_what_is_imported_shadows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(source_tree.HERE.parent)])
    monkeypatch.setattr(libraries, "FOLDER", tmp_path)
    assert source_tree.shadowed() is None
