from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from momentumnet.arithmetic.compiled import libraries
from momentumnet.bench.data import downloads
from momentumnet.bench.measuring.probe import step_costs
from momentumnet.cli.main import main
from momentumnet.finetuning import comparison, data
from tests.cli.finetuned import SMALL


@dataclass(frozen=True)
class Finished:
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _no_network_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(downloads, "reachable", lambda url: False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _own_modules_forgotten() -> Iterator[None]:
    """What a test has written as ``mine.py`` is not what another one finds."""
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs the command line in this process."""

    def run(*arguments: str) -> Finished:
        try:
            status = main(arguments)
        except SystemExit as leaving:  # argparse
            status = int(leaving.code or 0)
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture
def no_kernels_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels are looked for anew in this test, and after it."""
    monkeypatch.delenv("MOMENTUMNET_NATIVE", raising=False)
    libraries.cpu.cache_clear(), libraries.cuda.cache_clear()
    yield
    libraries.cpu.cache_clear(), libraries.cuda.cache_clear()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes, bright and dark: eight images of each to train on, four to validate on."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, low in (("bright", 128), ("dark", 0)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(low, low + 128, (40, 40, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def finetune(command: Callable[..., Any], photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(data, "FILE_WORKERS", 0)
    monkeypatch.setattr(comparison, "step_costs", partial(step_costs, repeats=1))
    return lambda *arguments: command("finetune", "--data", str(photos), *SMALL, *arguments)
