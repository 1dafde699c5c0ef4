"""``momentumnet bench zoo``: the models of torchvision, timm and transformers, converted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from momentumnet.bench.reporting.results import Results
from momentumnet.bench.zoo.entries import LIBRARIES, Entry, entries, missing, version_of
from momentumnet.bench.zoo.measure import measure
from momentumnet.bench.zoo.table import tables
from momentumnet.cli import arguments
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText
from momentumnet.command_errors import MachineError, UsageError

TEXT = CommandText(
    "the models of torchvision, timm and transformers, converted",
    """\
Convert every model without naming its streams: what is found, the bytes that it saves, and the difference of one
training step's gradients to those of stored activations, or why it is refused. Models without a stream are planned for
the least bytes. On the CPU, with random weights and
small inputs: all of torchvision, the smallest member of each family of timm, small configurations of transformers, of
3 or 4 layers. What a conversion saves grows with the depth: --layers makes those of timm and transformers deeper.""",
    """\
examples:
  momentumnet bench zoo
  momentumnet bench zoo --library timm --resume
  momentumnet bench zoo --library transformers LlamaForCausalLM T5Model
  momentumnet bench zoo --library transformers --layers 12 --output runs/bench/zoo-12-layers

Each model is written as soon as it is done: with --resume the same command goes on where the last one ended. Writes
zoo.json and zoo.md to --output.""",
)
QUICK = {"torchvision": ("resnet18",), "timm": ("vit_tiny_patch16_224",), "transformers": ("LlamaForCausalLM",)}


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_cpu_benchmark(benchmarks, "zoo", TEXT, run)
    command.add_argument("models", nargs="*", metavar="MODEL", help="names of models (default: all of them)")
    command.add_argument(
        "--library",
        action="append",
        choices=LIBRARIES,
        help="one of the libraries alone; once for each (default: those that are installed)",
    )
    command.add_argument(
        "--layers",
        type=arguments.positive,
        metavar="N",
        help="at least N layers in each stack of transformers' models, and in the longest stack or stage of timm's; "
        "those that take no other number stay as they are (default: 3 or 4, and the family's smallest member)",
    )
    common.add_quick(command)
    common.add_resume(command, unit="model")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: ``--resume`` finds results of something else.
        MachineError: a library that was asked for is not installed.
        UsageError: there is no model of that name.
    """
    from momentumnet.cli.report import Report

    report = Report.of(options)
    libraries = _libraries(options, report)
    chosen = _chosen(options, libraries)
    settings: dict[str, Any] = {"libraries": {library: version_of(library) for library in LIBRARIES}}
    if options.layers is not None:
        settings["layers"] = options.layers
    path: Path = options.output / "zoo.json"
    results = Results.begin(
        path, command="bench zoo", device=torch.device("cpu"), settings=settings, resume=options.resume
    )
    with report.progress() as progress:
        task = progress.add_task("models", total=len(chosen))
        for entry in chosen:
            if not results.holds(library=entry.library, model=entry.name):
                progress.update(task, description=f"{entry.library}: {entry.name}")
                results.add([measure(entry)])
            progress.advance(task)
    finish(report, results, tables(results.rows, layers=options.layers))


def _libraries(options: argparse.Namespace, report: Any) -> list[str]:
    """Those that were asked for, or those that are there."""
    deepened = [library for library in LIBRARIES if library != "torchvision"]
    if options.layers is not None and "torchvision" in (options.library or ()):
        raise UsageError(
            f"--layers makes models of {' and '.join(deepened)} deeper, those of torchvision are as deep as their "
            "names say: leave out --layers or --library torchvision"
        )
    chosen = list(options.library or (LIBRARIES if options.layers is None else deepened))
    for library in missing(chosen):
        extra = {"timm": "timm", "transformers": "hf"}.get(library)
        remedy = f"pip install 'momentumnet[{extra}]'" if extra else f"pip install {library}"
        if options.library:
            raise MachineError(f"{library} is not installed: {remedy}")
        report.line(f"{library} is not installed, so its models are left out: {remedy}")
        chosen.remove(library)
    return chosen


def _chosen(options: argparse.Namespace, libraries: list[str]) -> list[Entry]:
    """The models that were named, or all."""
    every = list(entries(libraries, layers=options.layers))
    names = options.models or ([name for library in libraries for name in QUICK[library]] if options.quick else None)
    if names is None:
        return every
    for name in names:
        if not any(entry.name == name for entry in every):
            raise UsageError(
                f"there is no {name!r} among the models of {', '.join(libraries)}; there are: "
                + ", ".join(entry.name for entry in every)
            )
    return [entry for entry in every if entry.name in names]
