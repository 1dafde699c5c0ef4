"""Builds the kernels along with the package; the metadata is in pyproject.toml, the compiling in csrc/build.py."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
FOLDER = "momentumnet/_kernels"


def kernels() -> ModuleType:
    """csrc/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("momentumnet_kernels_build", ROOT / "csrc" / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError("csrc/build.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(Command):
    """Compiles into the build folder, or into the source tree for an editable installation."""

    description = "compile the kernels"
    user_options = ()

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def folder(self) -> Path:
        return (ROOT if self.editable_mode or self.build_lib is None else Path(self.build_lib)) / FOLDER

    def run(self) -> None:
        for name, outcome in kernels().build(self.folder()).items():
            self.announce(f"{name} kernels: {outcome['detail']}", level=2)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self.folder().glob("*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*") if path.is_file()]


class BuildWithKernels(build):
    # A list, and not setuptools' own: the plugins that it loads (scikit-build-core's) append to it.
    sub_commands: ClassVar[list[tuple[str, object]]] = [*build.sub_commands, ("build_kernels", None)]


class Wheel(bdist_wheel):
    """Libraries that any Python loads, through ctypes: the tag names the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        compiled = any(path.suffix == ".so" for path in self.get_finalized_command("build_kernels").folder().glob("*"))
        return "py3", "none", super().get_tag()[2] if compiled else "any"


class WithKernels(Distribution):
    def has_ext_modules(self) -> bool:
        return os.environ.get("MOMENTUMNET_BUILD") != "0"


setup(
    distclass=WithKernels,
    cmdclass={"build": BuildWithKernels, "build_kernels": BuildKernels, "bdist_wheel": Wheel},
)
