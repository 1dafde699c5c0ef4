"""Compiles the kernels: a C++ compiler or nvcc is all it needs, neither PyTorch nor Python's headers.

setup.py runs this on installing. In a source tree ``python csrc/build.py`` does it again after a change.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
RECORD = "build.json"
LIBRARIES = {"cpu": "libmomentumnet_cpu.so", "cuda": "libmomentumnet_cuda.so"}

# No -ffast-math: every bit counts. What is given up is errno and floating-point traps, which nobody reads.
GNU_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno")
GNU_FLAGS += ("-fno-trapping-math", "-Wno-psabi")
MSVC_FLAGS = ("/nologo", "/std:c++17", "/O2", "/EHsc", "/fp:precise")
VARIANTS = {"avx2": ("-mavx2",), "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")}
X86 = ("x86_64", "amd64")

CPP_COMPILERS = ("c++", "g++", "clang++", "cl")  # momentumnet doctor looks for them too

# One machine code for each generation runs on its later members; the last one is kept as PTX for what is yet to come.
CUDA_ARCHS = ("70", "75", "80", "90", "100", "120")
NVCC_FLAGS = ("-std=c++17", "-O3", "-fmad=false", "--cudart=static", "--threads=0", "-Xcompiler=-fPIC")
NVCC_FLAGS += ("-Xcompiler=-fvisibility=hidden", "-shared")


class NotBuilt(Exception):  # noqa: N818 - an outcome, recorded and shown by `momentumnet doctor`
    """A library was not built; the message says why and what helps."""


def build(folder: Path) -> dict[str, dict[str, object]]:
    """Builds what can be built into ``folder``, and writes down there what became of each library.

    MOMENTUMNET_BUILD=0 builds nothing. A library that cannot be built is an outcome, no error: the package works
    without, in plain PyTorch.

    Returns:
        For "cpu" and "cuda": ``built``, whether the library is there, and ``detail``, what it holds or why it is not.
    """
    folder = folder.absolute()  # compilers run elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict[str, object]] = {}
    for name, builder in {"cpu": build_cpu, "cuda": build_cuda}.items():
        target = folder / LIBRARIES[name]
        target.unlink(missing_ok=True)
        try:
            record[name] = {"built": True, "detail": _build_one(builder, target)}
        except NotBuilt as reason:
            target.unlink(missing_ok=True)
            record[name] = {"built": False, "detail": str(reason)}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return record


def _build_one(builder: Callable[[Path, Path], str], target: Path) -> str:
    if os.environ.get("MOMENTUMNET_BUILD") == "0":
        raise NotBuilt("switched off at install by MOMENTUMNET_BUILD=0")
    with tempfile.TemporaryDirectory() as scratch:
        return builder(target, Path(scratch))


def build_cpu(target: Path, scratch: Path) -> str:
    """Builds the CPU library; returns the compiler and the instruction sets that it can choose from.

    Raises:
        NotBuilt: There is no compiler, or it fails.
    """
    compiler = cpp_compiler()
    if Path(compiler[0]).stem.lower() == "cl":
        sources = [str(SOURCES / name) for name in ("cpu.cpp", "tables.cpp", "cpu_loops.cpp")]
        _run([*compiler, *MSVC_FLAGS, "/LD", *sources, f"/Fe{target}", f"/Fo{scratch}{os.sep}"])
        return f"{compiler[0]}: portable"
    variants = _compile_variants(compiler, scratch) if platform.machine().lower() in X86 else []
    choices = [f"-DMN_HAS_{name.upper()}" for name in variants]
    objects = [str(scratch / f"{name}.o") for name in ("cpu", "tables", "portable", *variants)]
    with ThreadPoolExecutor() as pool:
        base = [*compiler, *GNU_FLAGS, "-c"]
        others = [
            pool.submit(_run, [*base, str(SOURCES / source), "-o", str(scratch / f"{name}.o")])
            for name, source in {"tables": "tables.cpp", "portable": "cpu_loops.cpp"}.items()
        ]
        _run([*base, *choices, str(SOURCES / "cpu.cpp"), "-o", objects[0]])
        for other in others:
            other.result()
    _run([*compiler, "-shared", *objects, "-pthread", "-o", str(target)])
    return f"{' '.join(compiler)}: {', '.join(('portable', *variants))}"


def _compile_variants(compiler: Sequence[str], scratch: Path) -> list[str]:
    """Compiles the loops for each instruction set that this compiler knows."""

    def attempt(name: str) -> bool:
        flags = [*GNU_FLAGS, *VARIANTS[name], f"-DMN_LOOPS={name}_loops", "-Wno-maybe-uninitialized"]
        try:
            _run([*compiler, *flags, "-c", str(SOURCES / "cpu_loops.cpp"), "-o", str(scratch / f"{name}.o")])
        except NotBuilt:
            return False
        return True

    with ThreadPoolExecutor() as pool:
        return [name for name, built in zip(VARIANTS, pool.map(attempt, VARIANTS), strict=True) if built]


def cpp_compiler() -> list[str]:
    """The command of the C++ compiler: that of CXX, or the first one on the path.

    Raises:
        NotBuilt: There is none.
    """
    if command := chosen_compiler():
        return command
    for name in CPP_COMPILERS:
        if shutil.which(name):
            return [name]
    raise NotBuilt("no C++ compiler was found on installing (CXX, c++, g++, clang++); with one there, install again")


def chosen_compiler() -> list[str]:
    """The command in CXX; empty where there is none.

    Raises:
        NotBuilt: It is no command.
    """
    command = os.environ.get("CXX", "")
    try:
        return shlex.split(command)
    except ValueError as error:
        raise NotBuilt(f"CXX={command!r} is no command that could be run on installing: {error}") from error


def build_cuda(target: Path, scratch: Path) -> str:
    """Builds the CUDA library; returns the architectures that it is for.

    Raises:
        NotBuilt: There is no nvcc, or it fails.
    """
    nvcc = find_nvcc()
    archs = cuda_archs(nvcc)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    host = [f"-ccbin={program}" for program in chosen_compiler()[:1]]
    _run([nvcc, *NVCC_FLAGS, *host, *codes, str(SOURCES / "cuda.cu"), "-o", str(target)], cwd=scratch)
    return f"{nvcc}: sm_{', sm_'.join(archs)}"


def find_nvcc() -> str:
    """The path of nvcc, of CUDA_HOME, on the path, or where CUDA is usually installed.

    Raises:
        NotBuilt: There is none.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for candidate in (home and os.path.join(home, "bin", "nvcc"), "nvcc", "/usr/local/cuda/bin/nvcc"):
        if candidate and (found := shutil.which(candidate)):
            return found
    raise NotBuilt("nvcc was not found on installing (CUDA_HOME, PATH, /usr/local/cuda); with it there, install again")


def cuda_archs(nvcc: str) -> list[str]:
    """MOMENTUMNET_CUDA_ARCHS ("80;90"), or the usual ones that this nvcc knows.

    Raises:
        NotBuilt: It knows none of them.
    """
    if chosen := os.environ.get("MOMENTUMNET_CUDA_ARCHS"):
        return chosen.replace(",", ";").strip(";").split(";")
    known = _run([nvcc, "--list-gpu-code"]).split()
    if archs := [arch for arch in CUDA_ARCHS if f"sm_{arch}" in known]:
        return archs
    raise NotBuilt(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHS)}; set MOMENTUMNET_CUDA_ARCHS")


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Runs a compiler and returns what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    except OSError as error:
        raise NotBuilt(f"{command[0]} could not be run on installing: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise NotBuilt(f"{command[0]} failed on installing: {' '.join(errors[:1])}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the kernels with the compilers that are there.")
    default = SOURCES.parent / "momentumnet" / "_kernels"
    parser.add_argument("destination", type=Path, nargs="?", default=default, help="folder (default: the package's)")
    for library, outcome in build(parser.parse_args().destination).items():
        print(f"{library}: {'built' if outcome['built'] else 'not built'} ({outcome['detail']})")
