from __future__ import annotations

import builtins
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

import momentumnet as mn
from momentumnet.arithmetic import momentum_step, self_check
from momentumnet.arithmetic.adjoint import by_operations
from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.compiled.selection import NativeStep
from momentumnet.cli import compilers, doctor
from tests.arithmetic.compiled.variants import needs_kernels


class BrokenStep(NativeStep):
    """Kernels whose undo is off by one at one element."""

    def undo(self, ints: Any, *rest: Any, **options: Any) -> int:
        checksum = super().undo(ints, *rest, **options)
        ints.tensors[1][7] += 1
        return checksum


def diagnosis(command: Callable[..., Any]) -> dict[str, Any]:
    done = command("doctor", "--json")
    assert done.status == 0
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_versions_are_those_that_run(command: Callable[..., Any]) -> None:
    versions = diagnosis(command)["versions"]
    assert versions["momentumnet"] == mn.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"] == str(torch.__version__)
    assert versions["torchvision"] == torchvision.__version__
    assert versions["numpy"] == np.__version__
    assert versions["cuda"] == torch.version.cuda
    assert len(versions["gpus"]) == torch.cuda.device_count()


@needs_kernels
def test_kernels_in_use(command: Callable[..., Any]) -> None:
    cpu = diagnosis(command)["kernels"]["cpu"]
    assert cpu["available"]
    assert cpu["reason"] == ""
    assert cpu["variant"] == libraries.cpu().variant
    assert cpu["variant"] in cpu["variants"]
    assert "portable" in cpu["variants"]
    assert cpu["threads"] == torch.get_num_threads()
    assert cpu["threads_library"] == libraries.cpu().threads
    assert cpu["build"] == libraries.build_record()["cpu"]["detail"]


@needs_kernels
def test_every_variant_is_checked_and_the_chosen_one_stays(command: Callable[..., Any]) -> None:
    before = libraries.cpu().variant
    found = diagnosis(command)
    names = [f"cpu, {variant}" for variant in found["kernels"]["cpu"]["variants"]]
    checks = {check["kernels"]: check["difference"] for check in found["checks"]}
    assert checks | dict.fromkeys(names, "") == checks
    assert libraries.cpu().variant == before


@needs_kernels
def test_different_bits_end_with_1(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    monkeypatch.setattr(self_check, "NativeStep", BrokenStep)
    done = command("doctor", "--json")
    assert done.status == 1
    assert {check["difference"] for check in json.loads(done.out)["checks"]} == {"undo"}
    (message,) = (line for line in done.err.splitlines() if line.startswith("momentumnet: error: "))
    assert "MOMENTUMNET_NATIVE=0" in message
    assert "undo differs" in command("doctor").out


@needs_kernels
def test_a_kernel_that_fails_ends_with_1(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    def failing(*_: object, **__: object) -> None:
        raise mn.MomentumNetError("mn_step failed on cpu: no reason")

    monkeypatch.setattr(NativeStep, "step", failing)
    done = command("doctor", "--json")
    assert done.status == 1
    assert {check["difference"] for check in json.loads(done.out)["checks"]} == {"mn_step failed on cpu: no reason"}


def test_without_kernels_the_reason_and_what_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., Any], no_kernels_loaded: None
) -> None:
    record = {"cpu": {"built": False, "detail": "no C++ compiler was found on installing"}}
    (tmp_path / "build.json").write_text(json.dumps(record))
    monkeypatch.setattr(libraries, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = diagnosis(command)
    assert not found["kernels"]["cpu"]["available"]
    assert found["kernels"]["cpu"]["reason"].startswith("no C++ compiler was found on installing; to build: ")
    assert found["kernels"]["cuda"]["reason"].startswith("not built; to build: ")
    assert found["checks"] == []
    shown = command("doctor").out
    assert "plain PyTorch" in shown
    assert "no C++ compiler was found on installing" in shown


def test_a_pytorch_without_cuda_misses_nothing(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], no_kernels_loaded: None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = diagnosis(command)
    assert found["versions"]["cuda"] is None
    assert found["kernels"]["cuda"]["reason"] == "this PyTorch is built without CUDA"


def test_missing_extras_come_with_the_command(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("matplotlib", "pytest-benchmark"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name in sum(doctor.EXTRAS.values(), ()) else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    extras = diagnosis(command)["extras"]
    assert extras["cli"] == {"missing": ["matplotlib"], "install": 'pip install "momentumnet[cli]"'}
    assert extras["test"] == {"missing": ["pytest-benchmark"], "install": 'pip install "momentumnet[test]"'}
    assert extras["dev"] == {"missing": [], "install": ""}
    assert 'pip install "momentumnet[cli]"' in command("doctor").out


def test_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        extra: tuple(name for line in lines if not (name := line.split(">=")[0]).startswith("momentumnet["))
        for extra, lines in project["optional-dependencies"].items()
    }
    assert declared == doctor.EXTRAS


def test_it_runs_without_any_extra(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    """People ask the doctor because something is missing."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "momentumnet.cli.report", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    done = command("doctor")
    assert done.status == 0
    assert mn.__version__ in done.out
    assert json.loads(command("doctor", "--json").out)["versions"]["momentumnet"] == mn.__version__


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("step", "step"),
        ("rewind", "rewind"),
        ("undo", "undo"),
        ("checksum", "checksum"),
        ("write_position", "position"),
        ("pack", "pack"),
        ("unpack", "unpack"),
    ],
)
def test_the_check_finds_each_operation(monkeypatch: pytest.MonkeyPatch, name: str, found: str) -> None:
    """A check that passes whatever the kernels do would be worse than none."""
    right = getattr(momentum_step, name)

    def wrong(*arguments: Any, **options: Any) -> Any:
        result = right(*arguments, **options)
        if name == "checksum":
            arguments[1][1] += 1
            return result
        if name == "pack":
            result[-1] += 1
            return result
        if name == "unpack":
            arguments[1].write(arguments[1].read() + 1)
            return result
        changed = arguments[2] if name == "write_position" else arguments[0].tensors[0]
        changed[-1] += 1
        return result

    broken = type("Broken", (), {**vars(momentum_step), name: staticmethod(wrong)})
    monkeypatch.setattr(self_check, "in_one_pass", by_operations)
    monkeypatch.setattr(self_check, "NativeStep", lambda: momentum_step)
    assert self_check.difference(torch.device("cpu")) == ""
    monkeypatch.setattr(self_check, "NativeStep", lambda: broken)
    assert self_check.difference(torch.device("cpu")) == found


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_check_finds_each_gradient(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        found = by_operations(*arguments, **options)
        found[wrong][-1] += 1
        return found

    monkeypatch.setattr(self_check, "NativeStep", lambda: momentum_step)
    monkeypatch.setattr(self_check, "in_one_pass", broken)
    assert self_check.difference(torch.device("cpu")) == "adjoint"


def test_a_gpu_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> None:
    reasons = {"cpu": "", "cuda": "", "cuda:0": "", "cuda:1": "no kernel image is available"}
    monkeypatch.setattr(doctor.native, "reason", reasons.__getitem__)
    monkeypatch.setattr(doctor, "_difference", lambda device: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, index))
    found = diagnosis(command)
    assert found["versions"]["gpus"] == ["a GPU, compute capability 8.0", "a GPU, compute capability 8.1"]
    assert [check["kernels"] for check in found["checks"] if "cuda" in check["kernels"]] == ["cuda:0"]
    assert "No native kernels for cuda:1 tensors: no kernel image is available." in command("doctor").out


def test_it_looks_for_compilers_where_installing_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "csrc" / "build.py"
    spec = importlib.util.spec_from_file_location("kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert compilers.CPP_COMPILERS == build.CPP_COMPILERS
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compilers, "USUAL_NVCC", "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (compilers.cpp(), compilers.nvcc()) == (None, None)
    for name in ("clang++", "nvcc"):
        (tmp_path / name).touch(mode=0o755)
    assert (compilers.cpp(), compilers.nvcc()) == (str(tmp_path / "clang++"), str(tmp_path / "nvcc"))
    monkeypatch.setenv("CXX", "ccache g++")
    assert compilers.cpp() == "ccache g++"


def test_a_machine_without_a_compiler_is_told_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., Any], no_kernels_loaded: None
) -> None:
    monkeypatch.setattr(libraries, "FOLDER", tmp_path)
    monkeypatch.setattr(compilers, "cpp", lambda: None)
    assert "No C++ compiler: install one, by apt install g++" in command("doctor").out


def test_kernels_that_an_installation_has_are_told(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    monkeypatch.setattr(doctor.source_tree, "kernels_left_behind", lambda: "the sources in here are imported")
    assert "Kernels are left behind: the sources in here are imported." in command("doctor").out


def test_users_are_not_told_of_what_developers_need(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda package: False)
    out = command("doctor").out
    assert "Not installed, for models of transformers: transformers, accelerate" in out
    assert "pytest" not in out
    assert "ruff" not in out
