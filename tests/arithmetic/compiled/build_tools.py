"""What building and packaging need of a machine, what is built, and Python in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arithmetic.compiled.sources import build

CPU, CUDA = "libmomentumnet_cpu.so", "libmomentumnet_cuda.so"
BUILD_OFF = "switched off at install by MOMENTUMNET_BUILD=0"


def _found(finder: Callable[[], object]) -> bool:
    try:
        return bool(finder())
    except build.NotBuilt:
        return False


def _major(package: str) -> int:
    """The installed major version, or 0. By metadata: looking for the module pip switches distutils."""
    try:
        return int(importlib.metadata.version(package).partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


needs_compiler = pytest.mark.skipif(not _found(build.cpp_compiler), reason="there is no C++ compiler")
needs_nvcc = pytest.mark.skipif(not _found(build.find_nvcc), reason="there is no nvcc")
needs_pip = pytest.mark.skipif(not _major("pip"), reason="installing a wheel takes pip")
needs_setuptools = pytest.mark.skipif(_major("setuptools") < 77, reason="packaging takes setuptools 77 or newer")


def run_python(code: str, path: Path | None = None, **settings: str) -> str:
    """What ``code`` prints in a process of its own; ``path`` comes first where it imports from."""
    paths = ([str(path)] if path else []) + sys.path
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **settings},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
