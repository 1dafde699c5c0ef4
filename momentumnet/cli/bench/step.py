"""``momentumnet bench step``: memory and time of one training step, for several ways to train the same network."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import nn

from momentumnet.cli import arguments
from momentumnet.cli.bench import methods as ways
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.networks import CPU_NETWORKS, GPU_NETWORKS, NETWORKS, QUICK_NETWORKS, Network
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.training_step import TrainingStep, built, gradient_error, measure, ratio
from momentumnet.errors import MomentumNetError
from momentumnet.memory import format_bytes

DESCRIPTION = """\
Measure the peak memory and the time of one training step (forward and backward) of a network: as it is, with
torch.utils.checkpoint around every block and around every √n of n blocks, and converted at two values of gamma, exact
and with the plain float inverse. The methods take turns; the converted networks recompute the blocks outside their
streams too, as checkpointing does, but for 'others kept', which is what convert does by default. 'last kept' holds as
much as checkpointing every block does: the last blocks keep their activations."""
EPILOG = """\
examples:
  momentumnet bench step
  momentumnet bench step --network resnet50-128 --network encoder-48
  momentumnet bench step --network gpt-24 --device cuda --dtype bfloat16

Writes step.json, step.md and step.png to --output."""
NOTES = (
    "One forward and backward pass in training mode; memory beside parameters and their gradients. Columns with × are "
    "multiples of stored activations, 'to checkpoint' of checkpointing every block, measured in turns with them. "
    "Converted networks recompute the modules outside their streams too (others='checkpoint'), but for 'others kept', "
    "the default of convert. 'last kept': the last blocks keep their activations, as many of them as fit into what "
    "checkpointing every block holds more between forward and backward (spare=...).",
    "Gradient error: relative L2 against the same network and rule with stored activations. BatchNorm normalises with "
    "the batch everywhere; torch.utils.checkpoint moves its running statistics twice a step, which changes no gradient "
    "and takes no time to speak of.",
)


def add_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "step",
        summary="memory and time of one training step",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    command.add_argument(
        "--network",
        action="append",
        choices=tuple(NETWORKS),
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}; once for each (default on a CPU: {len(CPU_NETWORKS)} of moderate size, on a GPU: "
        f"{', '.join(GPU_NETWORKS)}; with --quick: {', '.join(QUICK_NETWORKS)})",
    )
    command.add_argument(
        "--gammas", type=arguments.gammas, default="9/10,1/8", metavar="G,...", help="(default: %(default)s)"
    )
    common.add_dtype(command)
    common.add_repeats(command)
    common.add_resume(command, unit="network")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: ``--resume`` finds results of something else.
    """
    from momentumnet.cli.bench.plots import plot_step
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    names = options.network or _default_networks(options, device)
    settings = {
        "gammas": [str(gamma) for gamma in options.gammas],
        "dtype": None if options.dtype is None else str(options.dtype),
        "repeats": common.chosen_repeats(options),
    }
    results = Results.begin(
        options.output / "step.json", command="bench step", device=device, settings=settings, resume=options.resume
    )
    with report.progress() as progress:
        for name in names:
            if results.holds(network=name):
                continue
            task = progress.add_task(name, total=3 + 4 * len(options.gammas))
            rows = _measure(NETWORKS[name], options, device, lambda task=task: progress.advance(task))  # type: ignore[misc]
            results.add([{"network": name, **row} for row in rows])
            progress.remove_task(task)
    table = _table(results.rows)
    table.show(report)
    write_markdown(results.path.with_suffix(".md"), [table], results.header)
    plot_step(results.rows, results.path.with_suffix(".png"))
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


def _default_networks(options: argparse.Namespace, device: torch.device) -> Sequence[str]:
    if options.quick:
        return QUICK_NETWORKS
    return GPU_NETWORKS if device.type == "cuda" else CPU_NETWORKS


def _measure(
    network: Network, options: argparse.Namespace, device: torch.device, advance: Callable[[], object]
) -> list[Row]:
    torch.manual_seed(0)
    model = network.build().to(device)
    step = TrainingStep(network.example().to(device), options.dtype)
    builds = ways.methods(network, options.gammas, arithmetics=("exact", "float"), keeping=True)
    with step.autocast():
        variants = {name: built(lambda build=build: build(model, step.x)) for name, build in builds.items()}  # type: ignore[misc]
    errors = {name: _gradient_error(step, variant, model, name, options.gammas) for name, variant in variants.items()}
    for name, error in errors.items():
        if isinstance(error, str):
            variants[name] = error
    rows = measure(variants, step, repeats=common.chosen_repeats(options), advance=advance)
    return [
        {
            "method": name,
            **row,
            "gradient_error": errors[name] if isinstance(errors[name], float) else None,
            "memory_to_stored": ratio(rows, name, "peak_bytes", ways.STORED),
            "time_to_stored": ratio(rows, name, "step_seconds", ways.STORED),
            "time_to_checkpoint": ratio(rows, name, "step_seconds", ways.CHECKPOINT),
        }
        for name, row in rows.items()
    ]


def _gradient_error(
    step: TrainingStep, variant: nn.Module | str, model: nn.Module, name: str, gammas: Sequence[Fraction]
) -> float | str:
    """The error against the same rule with stored activations; or why there is none."""
    if isinstance(variant, str):
        return variant
    if variant is model:
        return 0.0
    try:
        return gradient_error(step, variant, _reference(step, model, name, gammas))
    except (MomentumNetError, torch.OutOfMemoryError) as error:
        return str(error).splitlines()[0]


def _reference(step: TrainingStep, model: nn.Module, name: str, gammas: Sequence[Fraction]) -> nn.Module:
    for gamma in gammas:
        for arithmetic in ("exact", "float"):
            if name.partition(",")[0] == ways.momentum_name(gamma, arithmetic):
                with step.autocast():
                    return ways.converter(gamma, arithmetic, backward="stored")(model, step.x)
    return model


def _table(rows: Sequence[Row]) -> Table:
    columns = ("network", "method", "peak memory", "×", "step time", "×", "to checkpoint", "gradient error")
    cells = []
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["network"] != row["network"]
        cells.append((row["network"] if first else "", row["method"], *_figures(row)))
    failures = [f"{row['network']}, {row['method']}: {row['error']}" for row in rows if "error" in row]
    return Table("One training step", columns, cells, notes=(*NOTES, *failures))


def _figures(row: Row) -> tuple[str, ...]:
    if "error" in row:
        return ("fails", *[""] * 5)
    return (
        format_bytes(row["peak_bytes"]),
        f"{row['memory_to_stored']:.2f}",
        f"{row['step_seconds'] * 1000:.0f} ms",
        f"{row['time_to_stored']:.2f}",
        f"{row['time_to_checkpoint']:.2f}",
        f"{row['gradient_error']:.0e}" if row["gradient_error"] else "0",
    )
