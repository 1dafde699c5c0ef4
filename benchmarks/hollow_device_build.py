"""The hollow device of hollow_device.py: its libraries, and the environment of a process that runs on it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from momentumnet.arithmetic.compiled import libraries

ROOT = Path(__file__).resolve().parents[1]
STUBS = Path(__file__).resolve().parent / "hollow_device"
CUDA = 13  # whose runtime the stubs are

# Set in the process that runs on the hollow device: the folder of its libraries.
FOLDER_VARIABLE = "MOMENTUMNET_HOLLOW_DEVICE"
PRELOADED, DRIVER = "libhollow.so", "libcuda.so.1"


class Missing(Exception):  # noqa: N818 - an outcome, said in one line
    """The hollow device cannot be built here; the message says what is missing."""


def build(folder: Path) -> None:
    """Compiles the stubs, and the project's CUDA kernels for a runtime that can be replaced.

    Raises:
        Missing: Something that this takes is not there, or does not compile them.
    """
    kernels = _kernels_build()
    nvcc = compiler(kernels)
    folder.mkdir(parents=True, exist_ok=True)
    stub = [nvcc, "-shared", "--cudart=none", "-Xcompiler=-fPIC"]
    flags = [flag.replace("=static", "=shared") for flag in kernels.NVCC_FLAGS]
    cuda = folder / libraries.FOLDER.name / kernels.LIBRARIES["cuda"]
    cuda.parent.mkdir(exist_ok=True)
    _compile([*stub, str(STUBS / "runtime.c"), str(STUBS / "blas.c"), "-o", str(folder / PRELOADED)])
    _compile([*stub, f"-Xlinker=-soname={DRIVER}", str(STUBS / "driver.c"), "-o", str(folder / DRIVER)])
    _compile([nvcc, *flags, str(kernels.SOURCES / "cuda.cu"), "-o", str(cuda)])
    cpu = libraries.FOLDER / kernels.LIBRARIES["cpu"]
    if cpu.exists():
        shutil.copy(cpu, cuda.parent)


def compiler(kernels: ModuleType) -> str:
    """The path of nvcc.

    Raises:
        Missing: It, or what it needs beside, is not there.
    """
    if sys.platform != "linux":
        raise Missing("needs Linux, whose loader puts libraries in front of others (LD_PRELOAD)")
    if (torch.version.cuda or "").partition(".")[0] != str(CUDA):
        raise Missing(f"needs a PyTorch built for CUDA {CUDA}; this one is {torch.__version__}")
    try:
        nvcc: str = kernels.find_nvcc()
    except kernels.NotBuilt as error:
        raise Missing(f"needs nvcc of CUDA {CUDA}: none found (CUDA_HOME, PATH, /usr/local/cuda)") from error
    if not shutil.which("gcc"):
        raise Missing("needs gcc, with which nvcc compiles for the host: none found on the PATH")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    if f"release {CUDA}." not in version:
        found = re.search(r"release [\d.]+", version)
        raise Missing(f"needs nvcc of CUDA {CUDA}: {nvcc} is {found.group() if found else 'of no known version'}")
    return nvcc


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process that runs on the device built in ``folder``."""
    folder = folder.resolve()
    paths = {"LD_LIBRARY_PATH": str(folder), "LD_PRELOAD": str(folder / PRELOADED), "PYTHONPATH": str(ROOT)}
    joined = {name: os.pathsep.join(filter(None, (path, os.environ.get(name)))) for name, path in paths.items()}
    return {**os.environ, **joined, "CUDA_VISIBLE_DEVICES": "0", FOLDER_VARIABLE: str(folder)}


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")


def _kernels_build() -> ModuleType:
    """csrc/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("momentumnet_kernels_build", ROOT / "csrc" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
