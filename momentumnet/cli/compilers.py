"""The compilers that would build kernels on installing, for ``momentumnet doctor``."""

from __future__ import annotations

import os
import shutil

# Where csrc/build.py looks, which is no part of the package.
CPP_COMPILERS = ("c++", "g++", "clang++", "cl")
USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


def cpp() -> str | None:
    """The C++ compiler of CXX, or the first one on the path; None where there is none."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, CPP_COMPILERS)), None)


def nvcc() -> str | None:
    """CUDA's compiler, of CUDA_HOME, on the path or in its usual place; None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = (home and os.path.join(home, "bin", "nvcc"), "nvcc", USUAL_NVCC)
    return next(filter(None, (shutil.which(candidate) for candidate in candidates if candidate)), None)
