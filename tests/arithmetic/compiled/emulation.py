"""The CUDA library compiled for the CPU: its kernels as they are, by threads that take turns.

`emulated/cuda_runtime.h` is the part of CUDA that they use. What it cannot tell is what nvcc makes of them, and how
fast they are.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.sources import build

HEADERS = Path(__file__).resolve().parent / "emulated"
# Undefined on a GPU as well: accesses that are not aligned, shifts too far. These end the process.
CAUGHT = ("-fsanitize=alignment,bounds,shift-exponent", "-fsanitize-undefined-trap-on-error")
# kernel<<<grid, THREADS, 0, stream>>>(arguments);
_LAUNCH = re.compile(r"(?P<kernel>\w+(?:<[\w, ]+>)?)<<<grid, THREADS, 0, [^;]*?>>>\((?P<arguments>[^;]*)\);")


def without_launch_syntax(source: str) -> str:
    """The source as a C++ compiler takes it."""
    return _LAUNCH.sub(r"emulated::launch(grid, THREADS, [=] { \g<kernel>(\g<arguments>); });", source)


def emulated_cuda(folder: Path, *, line: str = "", instead: str = "") -> ctypes.CDLL:
    """Builds the library there, and loads it.

    Args:
        folder: an empty one.
        line: of the sources, to be replaced.
        instead: what stands for it.

    Raises:
        NotBuilt: There is no C++ compiler.
    """
    for path in build.SOURCES.iterdir():
        if path.suffix in (".h", ".cu"):
            source = path.read_text()
            (folder / path.name).write_text(without_launch_syntax(source.replace(line, instead) if line else source))
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", *CAUGHT, "-w", "-x", "c++", f"-I{HEADERS}"]
    target = folder / "libemulated.so"
    done = subprocess.run(
        [*build.cpp_compiler(), *flags, str(folder / "cuda.cu"), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-4000:]
    return libraries._checked(ctypes.CDLL(str(target)), "cuda")


class OnDeviceZero:
    """The library for CPU tensors: of these it is told how many threads, where it takes the number of a device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)
        if name not in libraries._FUNCTIONS:
            return function
        return lambda constants, size, _, *others: function(constants, size, 0, *others)
