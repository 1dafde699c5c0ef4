"""``momentumnet doctor``: what is installed, which kernels run and are right, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchvision

from momentumnet import native, source_tree
from momentumnet.arithmetic import self_check
from momentumnet.arithmetic.compiled import libraries
from momentumnet.cli import compilers
from momentumnet.cli.options import CommandText, add_command
from momentumnet.cli.plain_report import PlainReport
from momentumnet.command_errors import CommandError
from momentumnet.errors import MomentumNetError

TEXT = CommandText(
    "show what is installed, which kernels run, and what is missing",
    """\
Show the versions of what is installed, whether compiled kernels or plain PyTorch operations do the exact arithmetic
(the same bits, at another speed), what is missing and how to get it. Each compiled kernel runs once on a small state
and is compared with plain PyTorch. Nothing is changed and nothing is downloaded.""",
    """\
examples:
  momentumnet doctor
  momentumnet doctor --json > doctor.json    to send along with a question
  MOMENTUMNET_NATIVE=0 momentumnet doctor    with the compiled kernels switched off

exit status: 0, also where kernels are missing; 1 if one of them gives other bits than plain PyTorch, or fails""",
)
# Of pyproject.toml.
EXTRAS = {
    "cli": ("rich", "matplotlib", "scikit-learn", "safetensors", "argcomplete"),
    "hf": ("transformers", "accelerate", "peft"),
    "timm": ("timm",),
    "lightning": ("lightning",),
    "tensorboard": ("tensorboard",),
    "test": ("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "setuptools"),
    "docs": ("mkdocs", "mkdocs-material", "mkdocstrings-python", "latex2mathml"),
    "dev": ("ruff", "mypy", "basedpyright", "pre-commit", "build", "twine"),
}
# What users get with each; the others are for those who work on momentumnet itself.
PURPOSES = {
    "cli": "the command line",
    "hf": "models of transformers",
    "timm": "models of timm",
    "lightning": "training with Lightning",
    "tensorboard": "finetune --tensorboard",
}
PLAIN = "plain PyTorch"
HOW_TO_GET_A_COMPILER = "install one, by apt install g++ or dnf install gcc-c++, on macOS by xcode-select --install"


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    add_command(commands, "doctor", TEXT, run)


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        CommandError: A kernel gives other bits than plain PyTorch, or fails.
    """
    found: dict[str, Any] = {
        "command": "doctor",
        "versions": versions(),
        "place": str(source_tree.HERE),
        "kernels": {"cpu": cpu_kernels(), "cuda": cuda_kernels()},
        "compilers": {"c++": compilers.cpp(), "nvcc": compilers.nvcc()},
        "left_behind": source_tree.kernels_left_behind(),
        "extras": extras(),
        "checks": [{"kernels": name, "difference": difference} for name, difference in checks()],
    }
    report = _report(options)
    _show(report, found)
    report.result(found)
    if wrong := [check["kernels"] for check in found["checks"] if check["difference"]]:
        raise CommandError(
            f"the kernels ({'; '.join(wrong)}) do not do what plain PyTorch does: set MOMENTUMNET_NATIVE=0 "
            f"to go without them; to build them anew, {libraries.HOW_TO_BUILD}"
        )


def versions() -> dict[str, Any]:
    """The software, CUDA as PyTorch was built with it, and the GPUs."""
    from momentumnet import __version__

    return {
        "momentumnet": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"


def cpu_kernels() -> dict[str, Any]:
    """What does the arithmetic on CPU tensors."""
    found = libraries.cpu()
    return {
        **_library("cpu"),
        "variant": found.variant,
        "variants": found.variants(),
        "threads": torch.get_num_threads(),
        "threads_library": found.threads,
    }


def cuda_kernels() -> dict[str, Any]:
    """What does the arithmetic on CUDA tensors: of any GPU, and why not on one of those that are there."""
    reasons = {f"cuda:{index}": native.reason(f"cuda:{index}") for index in range(torch.cuda.device_count())}
    return {**_library("cuda"), "gpus": reasons}


def _library(device: str) -> dict[str, Any]:
    record = libraries.build_record().get(device, {})
    return {
        "available": native.available(device),
        "reason": native.reason(device),
        "build": str(record.get("detail", "")),
    }


def extras() -> dict[str, dict[str, Any]]:
    """For each optional extra the packages that are missing, and the command that brings them."""
    found: dict[str, dict[str, Any]] = {}
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if not _is_installed(package)]
        found[extra] = {"missing": missing, "install": f'pip install "momentumnet[{extra}]"' if missing else ""}
    return found


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def checks() -> Iterator[tuple[str, str]]:
    """Runs each kernel that is there: its name, and what it does otherwise than plain PyTorch (empty: nothing)."""
    cpu = libraries.cpu()
    before = cpu.variant
    for variant in cpu.variants():
        cpu.select_variant(variant)
        yield f"cpu, {variant}", _difference(torch.device("cpu"))
    cpu.select_variant(before)
    for index in range(torch.cuda.device_count()):
        if native.available(f"cuda:{index}"):
            yield f"cuda:{index}", _difference(torch.device("cuda", index))


def _difference(device: torch.device) -> str:
    try:
        return self_check.difference(device)
    except MomentumNetError as error:
        return str(error)


def _report(options: argparse.Namespace) -> PlainReport:
    """Tables drawn by rich, or plain ones: people ask the doctor because something is missing."""
    try:
        from momentumnet.cli.report import Report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return PlainReport.of(options)
    return Report.of(options)


def _show(report: PlainReport, found: dict[str, Any]) -> None:
    versions = found["versions"]
    report.line(f"momentumnet in {found['place']}")
    rows = [(name, str(versions[name])) for name in ("momentumnet", "python", "torch", "torchvision", "numpy")]
    rows.append(("CUDA of torch", versions["cuda"] or "none"))
    rows += [(f"GPU {index}", name) for index, name in enumerate(versions["gpus"])] or [("GPU", "none found")]
    rows += [
        (name, found["compilers"][key] or "none found") for name, key in (("C++ compiler", "c++"), ("nvcc", "nvcc"))
    ]
    report.table(("what", "which"), rows, title="What is here", left=2)

    cpu, cuda = found["kernels"]["cpu"], found["kernels"]["cuda"]
    threads = f"{cpu['threads']} thread(s) of {cpu['threads_library'] or 'their own'}"
    on_cuda = "native kernels" if versions["gpus"] else "native kernels, once there is a GPU"
    report.table(
        ("tensors", "the arithmetic is done by", "compiled by"),
        [
            ("cpu", f"native kernels, {cpu['variant']}, {threads}" if cpu["available"] else PLAIN, cpu["build"]),
            ("cuda", on_cuda if cuda["available"] else PLAIN, cuda["build"]),
        ],
        title="Kernels",
        left=3,
    )
    if found["checks"]:
        rows = [(check["kernels"], _verdict(check["difference"])) for check in found["checks"]]
        report.table(("kernels", "against plain PyTorch"), rows, title="Self-check", left=2)
    for line in _missing(found):
        report.line(line)


def _verdict(difference: str) -> str:
    if not difference:
        return "equal, to the bit"
    return f"{difference} differs" if difference.isidentifier() else f"failed: {difference}"


def _missing(found: dict[str, Any]) -> Iterator[str]:
    """One line for each thing that is not there, with what helps."""
    if found["left_behind"]:
        yield f"Kernels are left behind: {found['left_behind']}."
    if found["kernels"]["cpu"]["reason"] and not found["compilers"]["c++"]:
        yield f"No C++ compiler: {HOW_TO_GET_A_COMPILER}; then {libraries.HOW_TO_BUILD}."
    for device, kernel in found["kernels"].items():
        if kernel["reason"]:
            yield f"No native kernels for {device} tensors: {kernel['reason']}."
        for gpu, reason in kernel.get("gpus", {}).items():
            if reason and not kernel["reason"]:
                yield f"No native kernels for {gpu} tensors: {reason}."
    for extra, purpose in PURPOSES.items():
        state = found["extras"][extra]
        if state["missing"]:
            yield f"Not installed, for {purpose}: {', '.join(state['missing'])}. To get it: {state['install']}"
