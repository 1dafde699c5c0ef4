"""A source tree in front of an installation: Python that starts in the tree imports its sources, without kernels."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from pathlib import Path

from momentumnet.arithmetic.compiled import libraries
from momentumnet.errors import MomentumNetWarning

LIBRARY = "libmomentumnet_cpu.so"
HERE = Path(__file__).resolve().parent


def shadowed() -> Path | None:
    """The folder of an installed momentumnet that is not the one that was imported; None where there is none."""
    for found in importlib.metadata.distributions(name="momentumnet"):
        package = Path(str(found.locate_file("momentumnet"))).resolve()
        if package != HERE and (package / "__init__.py").is_file():
            return package
    return None


def kernels_left_behind() -> str:
    """What to do where the installed package has kernels and the sources in front of it have none; empty elsewhere."""
    if (libraries.FOLDER / LIBRARY).exists():
        return ""
    installed = shadowed()
    if installed is None or not (installed / libraries.FOLDER.name / LIBRARY).exists():
        return ""
    return (
        f"the sources in {HERE} are imported, which have no compiled kernels, in front of the installation in "
        f"{installed}, which has: start Python in another folder, or install the sources by "
        f"pip install -e {HERE.parent}"
    )


@functools.cache
def warn_once() -> None:
    """Warns once in a process of kernels that are left behind: without them the bits are the same, and slower."""
    if problem := kernels_left_behind():
        warnings.warn(problem, MomentumNetWarning, stacklevel=3)
