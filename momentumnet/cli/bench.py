"""``momentumnet bench``: memory and time against depth, for several ways to train the same blocks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from momentumnet.cli import arguments, depth
from momentumnet.cli.probe import StepCost, step_costs
from momentumnet.memory import format_bytes

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

DESCRIPTION = """\
Measure the peak memory and the time of one training step against the number of residual blocks: with stored
activations, with torch.utils.checkpoint around every block, and converted at two values of gamma."""
EPILOG = """\
examples:
  momentumnet bench depth
  momentumnet bench depth --family transformer --depths 4,8,16,32,64
  momentumnet bench depth --gammas 0.9,1/2,1/16 --output results

Writes depth-FAMILY.json and depth-FAMILY.png to --output."""


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    parser: argparse.ArgumentParser = commands.add_parser("bench", help="measure memory and time")
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    command: argparse.ArgumentParser = benchmarks.add_parser(
        "depth",
        parents=[arguments.common()],
        help="memory and time against the number of blocks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--family", choices=depth.FAMILIES, default="resnet", help="kind of block (default: %(default)s)"
    )
    command.add_argument(
        "--depths", type=arguments.depths, default="4,8,16,32,64", metavar="N,...", help="(default: %(default)s)"
    )
    command.add_argument(
        "--gammas", type=arguments.gammas, default="9/10,1/8", metavar="G,...", help="(default: %(default)s)"
    )
    command.add_argument("--repeats", type=arguments.positive, default=3, metavar="N", help="timed steps (default: 3)")
    command.add_argument(
        "--output", type=Path, default=Path("runs", "bench"), metavar="DIR", help="(default: %(default)s)"
    )
    arguments.add_device(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from momentumnet.cli.plot import plot_depth
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    costs = _measure(options, device, report)
    _show(costs, options, report)
    values = {
        "command": "bench depth",
        "family": options.family,
        "input": list(depth.example_input(options.family).shape),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [
            {
                "depth": blocks,
                "method": method,
                "peak_bytes": cost.memory.peak_bytes,
                "saved_bytes": cost.memory.saved_bytes,
                "step_seconds": cost.seconds,
            }
            for blocks, by_method in costs.items()
            for method, cost in by_method.items()
        ],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"depth-{options.family}.json"
    path.write_text(json.dumps(values, indent=2) + "\n")
    plot_depth(costs, path.with_suffix(".png"), title=f"One training step of {options.family} blocks")
    report.line(f"Written: {path} and {path.with_suffix('.png')}")
    report.result(values)


def _measure(options: argparse.Namespace, device: torch.device, report: Report) -> dict[int, dict[str, StepCost]]:
    costs = {}
    methods = depth.methods(options.gammas)
    with report.progress() as progress:
        steps = len(options.depths) * len(methods) * (options.repeats + 2)
        task = progress.add_task("", total=steps)
        for blocks in options.depths:
            progress.update(task, description=f"{blocks} {options.family} blocks")
            torch.manual_seed(0)
            network = depth.stack(options.family, blocks).to(device)
            x = depth.example_input(options.family).to(device)
            networks = {name: build(network, x) for name, build in methods.items()}
            costs[blocks] = step_costs(
                networks, partial(_step, x), repeats=options.repeats, advance=lambda: progress.advance(task)
            )
    return costs


def _step(x: Tensor, network: nn.Module) -> None:
    network.train()
    network(x).square().mean().backward()


def _show(costs: Mapping[int, Mapping[str, StepCost]], options: argparse.Namespace, report: Report) -> None:
    columns = ("blocks", "method", "peak memory", "held", "step time")
    rows = [
        (
            str(blocks) if index == 0 else "",
            method,
            format_bytes(cost.memory.peak_bytes),
            format_bytes(cost.memory.saved_bytes),
            f"{cost.seconds * 1000:.0f} ms",
        )
        for blocks, by_method in costs.items()
        for index, (method, cost) in enumerate(by_method.items())
    ]
    report.table(columns, rows, title=f"One training step of {options.family} blocks", left=2)
    shape = arguments.shape_text(depth.example_input(options.family).shape)
    report.line(f"Input {shape}; memory beside parameters and gradients, held: between forward and backward.")
