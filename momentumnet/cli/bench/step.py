"""``momentumnet bench step``: memory and time of one training step, for several ways to train the same network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from momentumnet.bench.networks.measured import CPU_NETWORKS, GPU_NETWORKS, NETWORKS, QUICK_NETWORKS, Network
from momentumnet.bench.networks.one_tensor import network_of
from momentumnet.bench.reporting.results import Results
from momentumnet.bench.step.measure import measure, step_methods
from momentumnet.bench.step.table import table
from momentumnet.cli import arguments
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.failures import told_of_inputs
from momentumnet.cli.options import CommandText, add_input, chosen_device
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import model_inputs, model_sources

BATCH = 8  # of a model that says what it takes
TEXT = CommandText(
    "memory and time of one training step",
    """\
Measure the peak memory and the time of one training step (forward and backward) of a network: as it is, with
torch.utils.checkpoint around every block and around every √n of n blocks, and converted at two values of gamma, exact
and with the plain float inverse. The methods take turns; the converted networks recompute the blocks outside their
streams too, as checkpointing does, but for 'others kept', which is what convert does by default. On a GPU also with
activations in the host's memory ('offloaded'); with --compiled also under torch.compile, block by block and as a
whole.""",
    """\
examples:
  momentumnet bench step
  momentumnet bench step --network resnet50-128 --network encoder-48
  momentumnet bench step --planned --network resnet50-64 --network encoder-48
  momentumnet bench step --network llama-24 --device cuda --dtype bfloat16 --compiled
  momentumnet bench step mine:network --input 16x3x64x64     mine.py: def network(): return an nn.Module

Writes step.json, step.md and step.png to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(benchmarks, "step", TEXT, run)
    group = command.add_argument_group("networks and methods")
    group.add_argument(
        "--network",
        action="append",
        choices=tuple(NETWORKS),
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}; once for each (default on a CPU: {len(CPU_NETWORKS)} of moderate size, on a GPU: "
        f"{', '.join(GPU_NETWORKS)}; with --quick: {', '.join(QUICK_NETWORKS)})",
    )
    group.add_argument(
        "--model",
        type=arguments.any_model,
        metavar="MODEL",
        help=f"instead of a --network: {model_sources.MEANING}; may stand alone, without '--model'",
    )
    add_input(group)
    group.add_argument(
        "--compiled",
        action="store_true",
        help="also each method with its blocks compiled one by one, and the network compiled as a whole with a budget "
        "of half its activations",
    )
    group.add_argument(
        "--planned",
        action="store_true",
        help="also networks planned with any gamma and at the last of --gammas, within the peak of each other "
        "method and within the least budget, beside the quickest method that fits into the same bytes; on a GPU also "
        "with plans that move activations to the host's memory",
    )
    group.add_argument(
        "--offloaded", action="store_true", help="also with activations in the host's memory (always on a GPU)"
    )
    common.add_gammas(command, "9/10,1/8")
    common.add_dtype(command)
    common.add_repeats(command)
    common.add_resume(command, unit="network")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: ``--resume`` finds results of something else.
    """
    from momentumnet.bench.step.plot import plot_step
    from momentumnet.cli.report import Report

    report, device = Report.of(options), chosen_device(options)
    chosen = {"offloading": options.offloaded or device.type == "cuda", "compiling": options.compiled}
    settings = {**common.step_settings(options), "repeats": common.chosen_repeats(options), **chosen}
    settings |= {"planning": True} if options.planned else {}
    networks = _networks(options, device)
    if options.model is not None:
        settings |= {"input": model_inputs.described(options.input)}
    path = options.output / "step.json"
    results = Results.begin(path, command="bench step", device=device, settings=settings, resume=options.resume)
    with report.progress() as progress:
        for name, network in networks.items():
            if results.holds(network=name):
                continue
            builds = step_methods(network, options.gammas, **chosen)
            task = progress.add_task(name, total=len(builds))
            rows = measure(
                network,
                builds,
                options.gammas,
                device,
                dtype=options.dtype,
                repeats=settings["repeats"],
                planning=options.planned,
                advance=lambda task=task: progress.advance(task),  # type: ignore[misc]
            )
            results.add([{"network": name, **row} for row in rows])
            progress.remove_task(task)
    finish(report, results, [table(results.rows)], plot_step)


def _networks(options: argparse.Namespace, device: torch.device) -> dict[str, Network]:
    """What is measured, by name.

    Raises:
        UsageError: Options do not go together, or there is no such model.
        CommandError: The model does not accept the input.
        ConversionError: It has no stream that can be carried.
    """
    if options.model is None:
        if options.input is not None:
            raise UsageError("--input is for a --model; the networks of --network bring theirs")
        return {name: NETWORKS[name] for name in options.network or _default_networks(options, device)}
    if options.network is not None:
        raise UsageError("--model and --network both name what is measured; leave out one of them")
    model = model_sources.build(options.model)
    inputs = model_sources.example_inputs(options.model, model, options.input, default_batch=BATCH)
    with told_of_inputs(options.model, options.input):
        return {options.model: network_of(model, inputs)}


def _default_networks(options: argparse.Namespace, device: torch.device) -> Sequence[str]:
    if options.quick:
        return QUICK_NETWORKS
    return GPU_NETWORKS if device.type == "cuda" else CPU_NETWORKS
