"""Compiling: what is built is used; what cannot be built, or is refused, costs speed alone."""

from __future__ import annotations

import ctypes
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.compiled import libraries
from tests.arithmetic.compiled.build_tools import BUILD_OFF, CPU, CUDA, needs_compiler, needs_nvcc, run_python
from tests.arithmetic.compiled.sources import ROOT, build
from tests.arithmetic.compiled.variants import needs_kernels

pytestmark = pytest.mark.usefixtures("_no_build_settings")
# What both libraries export besides mn_abi.
OTHERS = " ".join(f"void {name}() {{}}" for name in ("mn_error", *libraries._FUNCTIONS))


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
        raise build.NotBuilt("takes longer, and is tested with the packages")

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
