"""Compiling and packaging: what is built goes along with the package; what cannot be built costs speed alone."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.sources import ROOT, build

PACKAGED = ("csrc", "momentumnet", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
CPU, CUDA = "libmomentumnet_cpu.so", "libmomentumnet_cuda.so"
# What both libraries export besides mn_abi.
OTHERS = " ".join(f"void {name}() {{}}" for name in ("mn_error", *libraries._FUNCTIONS))
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
needs_kernels = pytest.mark.skipif(not mn.native.available(), reason=f"no native kernels: {mn.native.reason()}")
needs_pip = pytest.mark.skipif(not _major("pip"), reason="installing a wheel takes pip")
needs_setuptools = pytest.mark.skipif(_major("setuptools") < 77, reason="packaging takes setuptools 77 or newer")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOMENTUMNET_BUILD", "MOMENTUMNET_NATIVE", "MOMENTUMNET_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, from which the package takes its kernels in this test."""
    monkeypatch.setattr(libraries, "FOLDER", tmp_path / "_kernels")
    (tmp_path / "_kernels").mkdir()
    libraries.cpu.cache_clear(), libraries.cuda.cache_clear()
    yield tmp_path / "_kernels"
    libraries.cpu.cache_clear(), libraries.cuda.cache_clear()


def gradients() -> list[Tensor]:
    """Of a small converted network; the same in every process, but for what the kernels do."""
    generator = torch.Generator().manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(12, 12)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.linear(x))

    x = torch.randn(5, 12, generator=generator)
    model = mn.convert(nn.Sequential(*(Block() for _ in range(6))), x)
    model(x).square().sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert len(found) == 12
    return [gradient for gradient in found if gradient is not None]


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


@needs_compiler
def test_the_package_under_test_has_its_kernels() -> None:
    """So that a suite cannot pass because every test of the kernels skipped."""
    record = libraries.build_record().get("cpu", {})
    if "MOMENTUMNET_BUILD" in str(record.get("detail", "")):
        pytest.skip(str(record["detail"]))
    library, reason = libraries._load("cpu")
    assert library is not None, reason


class TestNotBuilt:
    def test_switched_off(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / CPU).write_bytes(b"of an earlier installation")
        monkeypatch.setenv("MOMENTUMNET_BUILD", "0")
        build.build(folder)
        assert [path.name for path in folder.iterdir()] == ["build.json"]
        assert not mn.native.available()
        assert mn.native.reason() == BUILD_OFF

    @pytest.mark.parametrize(
        ("compiler", "reason"),
        [
            (None, "no C++ compiler was found on installing"),
            ("  ", "no C++ compiler was found on installing"),
            ("/nonexistent", "/nonexistent could not be run on installing"),
            ('c++ "', "CXX='c++ \"' is no command"),
        ],
    )
    def test_no_compiler(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, reason: str
    ) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("MOMENTUMNET_CUDA_ARCHS", "nonsense")
        if compiler is not None:
            monkeypatch.setenv("CXX", compiler)
        record = build.build(folder)
        assert not record["cpu"]["built"]
        assert not record["cuda"]["built"]
        detail = str(record["cpu"]["detail"])
        assert detail.startswith(reason)
        assert mn.native.reason() == f"{detail}; to build: {libraries.HOW_TO_BUILD}"

    def test_the_package_works_without(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "momentumnet"):
            without = gradients()
            gradients()
        (message,) = (record for record in caplog.records if "no native kernels" in record.message)
        assert (message.levelno, "plain PyTorch" in message.message) == (logging.INFO, True)
        libraries.cpu.cache_clear()
        monkeypatch.setattr(libraries, "FOLDER", Path(mn.__file__).parent / "_kernels")
        assert all(map(torch.equal, without, gradients()))

    @needs_compiler
    def test_a_compiler_that_fails(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", f"{build.cpp_compiler()[0]} -nonsense-flag")
        monkeypatch.setenv("MOMENTUMNET_CUDA_ARCHS", "nonsense")
        record = build.build(folder)
        assert not record["cpu"]["built"]
        assert "nonsense" in str(record["cpu"]["detail"])
        assert "nonsense" in mn.native.reason()
        assert json.loads((folder / "build.json").read_text()) == record

    @needs_nvcc
    def test_architectures_that_nvcc_does_not_know(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "/nonexistent")
        monkeypatch.setenv("MOMENTUMNET_CUDA_ARCHS", "nonsense")
        detail = str(build.build(folder)["cuda"]["detail"])
        assert "nvcc" in detail
        assert "nonsense" in detail
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert detail in mn.native.reason("cuda")

    def test_an_instruction_set_that_the_compiler_does_not_know(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        script = tmp_path / "compiler.py"
        script.write_text(
            "import sys\n"
            "sys.exit('error: -mavx512f?') if '-mavx512f' in sys.argv else None\n"
            "open(sys.argv[sys.argv.index('-o') + 1], 'w').write(' '.join(sys.argv))\n"
        )
        monkeypatch.setenv("CXX", f"{sys.executable} {script}")
        monkeypatch.setenv("MOMENTUMNET_CUDA_ARCHS", "nonsense")
        monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
        assert str(build.build(folder)["cpu"]["detail"]).endswith(": portable, avx2")
        assert (folder / CPU).exists()


class TestRefused:
    """What lies where the library should be, but is none that fits: a reason, one warning, and plain PyTorch."""

    def refusal(self, caplog: pytest.LogCaptureFixture) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "momentumnet"):
            assert not mn.native.available()
            assert len(gradients()) == 12
        (warning,) = caplog.records
        assert mn.native.reason() in warning.message
        assert libraries.HOW_TO_BUILD in warning.message
        return mn.native.reason()

    @pytest.mark.parametrize(
        "content", [b"", b"garbage" * 1000, b"\x7fELF" + bytes(60)], ids=["empty", "text", "header"]
    )
    def test_garbage(self, folder: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
        (folder / CPU).write_bytes(content)
        assert self.refusal(caplog).startswith(f"{CPU} could not be used: ")

    @needs_compiler
    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            (
                f"{{ int mn_abi() {{ return {libraries.ABI + 1}; }} }}",
                f"interface {libraries.ABI + 1}, this momentumnet needs",
            ),
            (f"{{ int mn_abi() {{ return {libraries.ABI}; }} }}", "mn_error"),
            (f"{{ int mn_abi() {{ return {libraries.ABI}; }} {OTHERS} }}", "mn_variant"),
            ("{ int other() { return 0; } }", "mn_abi"),
        ],
        ids=["another interface", "functions missing", "the other device's", "another library"],
    )
    def test_another_library(
        self, folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, source: str, reason: str
    ) -> None:
        (tmp_path / "other.cpp").write_text(f'extern "C" {source}\n')
        compile_it = [*build.cpp_compiler(), "-shared", "-fPIC", str(tmp_path / "other.cpp"), "-o", str(folder / CPU)]
        subprocess.run(compile_it, check=True)
        assert reason in self.refusal(caplog)


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' loaders find out themselves")
def test_half_a_library_is_refused(tmp_path: Path) -> None:
    """In a process of its own: the system's loader would end it."""
    whole = (libraries.FOLDER / CPU).read_bytes()
    (tmp_path / CPU).write_bytes(whole[: len(whole) // 2])
    code = (
        "import pathlib, momentumnet as mn; from momentumnet.arithmetic.compiled import libraries\n"
        f"libraries.FOLDER = pathlib.Path({str(tmp_path)!r}); print(mn.native.reason())"
    )
    reason = f"it is cut off, after {len(whole) // 2} of {len(whole)} bytes"
    assert run_python(code).startswith(f"{CPU} could not be used: {reason}; to build it anew: ")


def test_the_number_of_the_interface_is_that_of_the_header() -> None:
    assert f"#define MN_ABI {libraries.ABI}\n" in (ROOT / "csrc" / "interface.h").read_text()


@needs_kernels
def test_switched_off_at_run_time(tmp_path: Path) -> None:
    code = (
        "import sys, torch, momentumnet as mn; from tests.arithmetic.compiled.test_build import gradients\n"
        f"torch.save(gradients(), {str(tmp_path / 'gradients.pt')!r}); print(mn.native.available(), mn.native.reason())"
    )
    assert run_python(code, MOMENTUMNET_NATIVE="0") == "False switched off by MOMENTUMNET_NATIVE=0"
    expected = gradients()
    assert all(map(torch.equal, torch.load(tmp_path / "gradients.pt"), expected))


@needs_nvcc
def test_cuda_kernels_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def not_built(*_: Path) -> str:
        raise build.NotBuilt("takes longer, and is tested below")

    monkeypatch.setenv("MOMENTUMNET_CUDA_ARCHS", "80")
    monkeypatch.setattr(build, "build_cpu", not_built)
    monkeypatch.chdir(tmp_path)
    detail = build.build(Path("build"))["cuda"]["detail"]  # a relative path, as setuptools has it
    assert str(detail).endswith("nvcc: sm_80")
    library = ctypes.CDLL(str(tmp_path / "build" / CUDA))  # with or without a GPU: CUDA's runtime is inside
    assert library.mn_abi() == libraries.ABI
    assert libraries._checked(library, "cuda") is library
    if not torch.cuda.is_available():
        status = library.mn_probe(0)
        assert status != 0
        assert library.mn_error(status).decode() not in ("", "no error")


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
