"""Packaging: what is built goes along with the package, and one without it works, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.arithmetic.compiled.build_tools import (
    BUILD_OFF,
    CPU,
    needs_compiler,
    needs_pip,
    needs_setuptools,
    run_python,
)
from tests.arithmetic.compiled.sources import ROOT

pytestmark = pytest.mark.usefixtures("_no_build_settings")
PACKAGED = ("csrc", "momentumnet", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


def backend(tree: Path, hook: str, **settings: str) -> Path:
    """What a hook of the build backend makes of ``tree``, as pip calls it."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}('dist'))"
    name = run_python(code, tree, **settings).splitlines()[-1]
    return tree / "dist" / name


def install(wheel: Path, into: Path) -> None:
    """By pip, which refuses a wheel whose tag is not for this machine."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(into)]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the source tree in which an earlier build has left its library."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("_kernels", "__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    (tree / "momentumnet" / "_kernels").mkdir()
    (tree / "momentumnet" / "_kernels" / CPU).write_bytes(b"of an earlier build")
    (tree / "dist").mkdir()
    return backend(tree, "build_sdist")


def unpacked(sdist: Path, into: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    (tree,) = into.iterdir()
    (tree / "dist").mkdir()
    return tree


@pytest.fixture(scope="module")
def compiled(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a machine with a compiler makes of the sdist; the only test compilation of the CPU kernels."""
    tree = unpacked(sdist, tmp_path_factory.mktemp("compiled"))
    return backend(tree, "build_wheel", MOMENTUMNET_BUILD="1", MOMENTUMNET_CUDA_ARCHS="nonsense")


@needs_setuptools
class TestPackages:
    def test_sdist_has_the_sources_and_no_library(self, sdist: Path) -> None:
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_file()}
        assert {"csrc/build.py", "csrc/cuda.cu", "csrc/interface.h"} <= sources <= names
        assert {"setup.py", "momentumnet/py.typed"} <= names
        assert not [name for name in names if name.endswith(".so")]

    @needs_compiler
    @needs_pip
    def test_wheel_brings_the_kernels(self, compiled: Path, tmp_path: Path) -> None:
        _, _, *tags = compiled.stem.split("-")
        assert tags[:2] == ["py3", "none"]
        assert tags[2] != "any"
        install(compiled, tmp_path)
        record = json.loads((tmp_path / "momentumnet" / "_kernels" / "build.json").read_text())
        # Architectures that nvcc does not know, or no nvcc at all, are no reason not to install.
        assert {name: outcome["built"] for name, outcome in record.items()} == {"cpu": True, "cuda": False}
        code = "import momentumnet as mn; print(mn.__file__); print(mn.native.available(), mn.native.reason())"
        place, state = run_python(code, tmp_path).splitlines()
        assert Path(place).is_relative_to(tmp_path)
        assert state == "True"

    def test_another_package_may_add_a_command_to_the_build(self, sdist: Path, tmp_path: Path) -> None:
        """As scikit-build-core does wherever it is installed, to every package that is built without isolation."""
        tree = unpacked(sdist, tmp_path / "source")
        (tree / "plugin-1.dist-info").mkdir()
        (tree / "plugin-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
        (tree / "plugin-1.dist-info" / "entry_points.txt").write_text(
            "[setuptools.finalize_distribution_options]\nplugin = plugin:add\n"
        )
        (tree / "plugin.py").write_text(
            "from setuptools.command.build import build\n\n"
            "def asked(command):\n    print('the plugin was asked')\n    return False\n\n"
            "def add(distribution):\n"
            "    distribution.get_command_class('build').sub_commands.append(('build_more', asked))\n"
            "    assert 'build_more' not in dict(build.sub_commands), 'in the build of every package'\n"
        )
        code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
        assert "the plugin was asked" in run_python(code, tree, MOMENTUMNET_BUILD="0")

    @needs_pip
    def test_wheel_without_kernels_is_for_any_machine(self, sdist: Path, tmp_path: Path) -> None:
        wheel = backend(unpacked(sdist, tmp_path / "source"), "build_wheel", MOMENTUMNET_BUILD="0")
        assert wheel.name.endswith("-py3-none-any.whl")
        install(wheel, tmp_path / "installed")
        code = "import momentumnet as mn; print(mn.native.available(), mn.native.reason())"
        assert run_python(code, tmp_path / "installed") == f"False {BUILD_OFF}"

    @needs_compiler
    def test_editable_installation_builds_into_the_source_tree(
        self, sdist: Path, compiled: Path, tmp_path: Path
    ) -> None:
        tree = unpacked(sdist, tmp_path / "source")
        library = tmp_path / CPU
        with zipfile.ZipFile(compiled) as archive:
            library.write_bytes(archive.read(f"momentumnet/_kernels/{CPU}"))
        script = tmp_path / "compiler.py"  # one that is quick: it knows what will come out
        script.write_text(f"import shutil, sys\nshutil.copy({str(library)!r}, sys.argv[sys.argv.index('-o') + 1])\n")
        settings = {"CXX": f"{sys.executable} {script}", "MOMENTUMNET_CUDA_ARCHS": "nonsense"}
        backend(tree, "build_editable", **settings)
        assert (tree / "momentumnet" / "_kernels" / CPU).read_bytes() == library.read_bytes()
        assert run_python("import momentumnet as mn; print(mn.native.available())", tree) == "True"
