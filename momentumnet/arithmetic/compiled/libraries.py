"""The compiled kernels (csrc): found, checked and loaded; or why they are not used.

They are plain shared libraries, called through ctypes with raw pointers, so that they depend on no version of PyTorch
or Python. What does not fit is refused with a reason; `momentumnet.arithmetic.fixed_point` does the same work then.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger("momentumnet")

ABI = 9  # MN_ABI in csrc/interface.h
FOLDER = Path(__file__).resolve().parents[2] / "_kernels"
VARIANTS = ("portable", "avx2", "avx512")
# pip would take the wheel that it has made before, without kernels, from its cache.
HOW_TO_BUILD = (
    "install momentumnet again with pip's --force-reinstall --no-deps --no-cache-dir, "
    "or run python csrc/build.py in its source tree"
)

_ELF_64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")
_OPENMP_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Plan(ctypes.Structure):
    """MnPlan of csrc/interface.h: the constants of one step."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n", "d", "previous_bound", "bound", "next_bound", "offset", "exponent")),
        ("factor", ctypes.c_double),
        *(
            (name, ctypes.c_int32)
            for name in ("word_bits", "store_bits", "y_dtype", "skip_dtype", "position_dtype", "ahead")
        ),
    )


class Field(ctypes.Structure):
    """MnField of csrc/interface.h: the bits of an integer that are kept, and where it lies."""

    _fields_ = (("width", ctypes.c_int32), ("is_signed", ctypes.c_int32), ("plane", ctypes.c_int32))


class Adjoint(ctypes.Structure):
    """MnAdjoint of csrc/interface.h: the constants of a step's adjoint."""

    _fields_ = (
        ("gamma", ctypes.c_double),
        ("weight", ctypes.c_double),
        ("dtype", ctypes.c_int32),
        ("velocity_dtype", ctypes.c_int32),
    )


PIECES = 16  # MN_PIECES
LOOK_ALONE = 1 << 14  # MN_LOOK_ALONE


class Look(ctypes.Structure):
    """MnLook of csrc/interface.h: elements of a few pieces of memory."""

    _fields_ = (
        ("data", ctypes.c_void_p * PIECES),
        ("stride", ctypes.c_int64 * PIECES),
        ("count", ctypes.c_int32 * PIECES),
        ("bytes", ctypes.c_int32 * PIECES),
    )


# Each function's constants, and the number of its tensors.
_FUNCTIONS: dict[str, tuple[type[ctypes.Structure], int]] = {
    "mn_step": (Plan, 7),
    "mn_undo": (Plan, 7),
    "mn_rewind": (Plan, 4),
    "mn_checksum": (Plan, 4),
    "mn_start": (Plan, 4),
    "mn_position": (Plan, 2),
    "mn_output": (Plan, 3),
    "mn_reach": (Field, 3),
    "mn_pack": (Field, 3),
    "mn_unpack": (Field, 3),
    "mn_adjoint": (Adjoint, 5),
    "mn_look": (Look, 1),
}


@dataclass(frozen=True)
class Kernels:
    """One library, or why there is none.

    Attributes:
        library: the loaded library; None where it is not used.
        reason: why it is not used, and what helps; empty where it is.
        threads: the OpenMP library whose threads the CPU kernels share; empty for threads of their own.
    """

    library: ctypes.CDLL | None
    reason: str = ""
    threads: str = ""

    @property
    def variant(self) -> str:
        """The instruction set that the CPU kernels use: "portable", "avx2" or "avx512"."""
        return "" if self.library is None else self.library.mn_variant().decode()

    def variants(self) -> list[str]:
        """All instruction sets that this machine and this library have."""
        before = self.variant
        found = [name for name in VARIANTS if self.select_variant(name)]
        self.select_variant(before)
        return found

    def select_variant(self, name: str) -> bool:
        """Use another instruction set; False, and no change, where this machine or library does not have it."""
        return self.library is not None and bool(self.library.mn_select_variant(name.encode()))


@functools.cache
def cpu() -> Kernels:
    """The kernels for CPU tensors."""
    library, reason = _load("cpu")
    if library is None:
        return Kernels(None, reason)
    return Kernels(library, threads=_share_threads(library))


@functools.cache
def cuda() -> Kernels:
    """The kernels for CUDA tensors, whatever GPUs there are."""
    if torch.version.cuda is None:
        return Kernels(None, "this PyTorch is built without CUDA")
    return Kernels(*_load("cuda"))


@functools.cache
def on_cuda(index: int) -> Kernels:
    """The kernels for tensors on one GPU: none where the library has no code for it, or wants a newer driver."""
    found = cuda()
    if found.library is None or not (status := found.library.mn_probe(index)):
        return found
    problem = found.library.mn_error(status).decode()
    reason = f"libmomentumnet_cuda.so does not run on cuda:{index}: {problem}; to build it for this GPU: {HOW_TO_BUILD}"
    _warn(f"cuda:{index}", reason)
    return Kernels(None, reason)


def of(device: torch.device) -> Kernels:
    """The kernels for tensors on ``device``; "cuda" without a number is any GPU."""
    if device.type == "cpu":
        return cpu()
    if device.type == "cuda":
        return cuda() if device.index is None else on_cuda(device.index)
    return Kernels(None, f"there are kernels for CPU and CUDA tensors, none for {device.type!r}")


def build_record() -> dict[str, dict[str, object]]:
    """What became of each library on installing (csrc/build.py); empty where nothing was written down."""
    try:
        record = json.loads((FOLDER / "build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _load(name: str) -> tuple[ctypes.CDLL | None, str]:
    """The library called ``name``; or None, and the reason. Says once in the log why there is none."""
    if os.environ.get("MOMENTUMNET_NATIVE") == "0":
        return None, "switched off by MOMENTUMNET_NATIVE=0"
    path = FOLDER / f"libmomentumnet_{name}.so"
    if not path.exists():
        detail = str(build_record().get(name, {}).get("detail", ""))
        reason = detail if "MOMENTUMNET_BUILD" in detail else f"{detail or 'not built'}; to build: {HOW_TO_BUILD}"
        logger.info("no native kernels for %s tensors (%s); plain PyTorch operations do the work", name, reason)
        return None, reason
    try:
        _check_whole(path)
        library = _checked(ctypes.CDLL(str(path)), name)
    except (OSError, AttributeError) as error:
        reason = f"{path.name} could not be used: {error}; to build it anew: {HOW_TO_BUILD}"
        _warn(name, reason)
        return None, reason
    return library, ""


def _warn(tensors: str, reason: str) -> None:
    logger.warning("no native kernels for %s tensors (%s); plain PyTorch operations do the work", tensors, reason)


def _check_whole(path: Path) -> None:
    """Nothing, if the file goes as far as its header says: loading half an ELF library ends the process.

    Raises:
        OSError: It is cut off.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(_ELF_64_LITTLE_ENDIAN):
        return  # the loaders of other formats look for themselves
    (sections,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    if (found := path.stat().st_size) < (whole := sections + size * count):
        raise OSError(f"it is cut off, after {found} of {whole} bytes")


def _checked(library: ctypes.CDLL, name: str) -> ctypes.CDLL:
    """The library called ``name``, its functions' types declared.

    Raises:
        OSError: It was built for another version of momentumnet.
        AttributeError: It lacks a function.
    """
    library.mn_abi.restype = ctypes.c_int32
    if (found := library.mn_abi()) != ABI:
        raise OSError(f"it has interface {found}, this momentumnet needs {ABI}")
    library.mn_error.restype = ctypes.c_char_p
    library.mn_error.argtypes = (ctypes.c_int32,)
    for function, (constants, pointers) in _FUNCTIONS.items():
        common = (ctypes.POINTER(constants), ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p)
        getattr(library, function).argtypes = (*common, *(ctypes.c_void_p,) * pointers)
        getattr(library, function).restype = ctypes.c_int32
    if name == "cpu":
        library.mn_variant.restype = ctypes.c_char_p
        library.mn_select_variant.argtypes = (ctypes.c_char_p,)
        library.mn_set_openmp.argtypes = (ctypes.c_void_p,) * 3
        library.mn_set_python.argtypes = (ctypes.c_void_p,)  # for `python_tables`
    else:
        library.mn_probe.argtypes = (ctypes.c_int32,)
    return library


def _share_threads(library: ctypes.CDLL) -> str:
    """Hand the library the threads of the OpenMP runtime that PyTorch uses; return the runtime's name.

    A second runtime would bring threads of its own, which fight with the first one's for the cores.
    """
    for path in _openmp_libraries():
        try:
            runtime = ctypes.CDLL(path)
            functions = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in _OPENMP_FUNCTIONS]
        except (OSError, AttributeError):
            continue
        library.mn_set_openmp(*functions)
        return Path(path).name
    return ""


def _openmp_libraries() -> Iterator[str]:
    """Paths of OpenMP libraries that are loaded, the one that PyTorch uses first."""
    home = Path(torch.__file__).resolve().parent
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        loaded = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    except OSError:
        loaded = {str(path) for path in (home / "lib").glob("lib*omp*")}

    def order(path: str) -> tuple[bool, bool, str]:
        """PyTorch's own, then the system's, then those that other packages brought along."""
        ours = any(Path(path).is_relative_to(folder) for folder in (home, home.with_name("torch.libs")))
        return not ours, Path(path).is_relative_to(home.parent), path

    if sys.platform != "win32":
        yield from sorted((path for path in loaded if Path(path).name.startswith(_OPENMP_NAMES)), key=order)
