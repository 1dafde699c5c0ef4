"""``momentumnet bench depth``: memory and time against depth, for several ways to train the same blocks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from momentumnet.cli import arguments
from momentumnet.cli.bench import methods as ways
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.networks import FAMILIES, family
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.training_step import TrainingStep, built, measure
from momentumnet.memory import format_bytes

DESCRIPTION = """\
Measure the peak memory and the time of one training step against the number of residual blocks: with stored
activations, with torch.utils.checkpoint around every block and around every √n of n blocks, and converted at two values
of gamma. With --budget, each method goes on to deeper networks until its peak passes the budget."""
EPILOG = """\
examples:
  momentumnet bench depth
  momentumnet bench depth --family transformer --depths 4,8,16,32,64
  momentumnet bench depth --budget 512MiB --repeats 1
  momentumnet bench depth --gammas 0.9,1/2,1/16 --output results

Writes depth-FAMILY.json, depth-FAMILY.md and depth-FAMILY.png to --output."""
DEPTHS, BUDGET_DEPTHS, QUICK_DEPTHS = [4, 8, 16, 32, 64], [8, 16, 32, 64, 128, 256, 512, 1024], [2, 4]


def add_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "depth",
        summary="memory and time against the number of blocks",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    command.add_argument("--family", choices=FAMILIES, default="resnet", help="kind of block (default: %(default)s)")
    command.add_argument(
        "--depths",
        type=arguments.depths,
        metavar="N,...",
        help=f"(default: {_listed(DEPTHS)}; with --budget {_listed(BUDGET_DEPTHS)}; with --quick "
        f"{_listed(QUICK_DEPTHS)})",
    )
    command.add_argument(
        "--budget",
        type=arguments.byte_count,
        metavar="SIZE",
        help="peak memory of a step, e.g. 512MiB, at which a method's series ends (default: none)",
    )
    command.add_argument(
        "--gammas", type=arguments.gammas, default="9/10,1/8", metavar="G,...", help="(default: %(default)s)"
    )
    common.add_dtype(command)
    common.add_repeats(command)
    common.add_resume(command, unit="depth")
    command.set_defaults(run=run)


def _listed(depths: Sequence[int]) -> str:
    return ",".join(map(str, depths))


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: ``--resume`` finds results of something else.
    """
    from momentumnet.cli.bench.plots import plot_depth
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    depths = options.depths or (QUICK_DEPTHS if options.quick else BUDGET_DEPTHS if options.budget else DEPTHS)
    shape = list(family(options.family, 1).example().shape)
    settings = {
        "family": options.family,
        "input": shape,
        "gammas": [str(gamma) for gamma in options.gammas],
        "dtype": None if options.dtype is None else str(options.dtype),
        "budget": options.budget,
        "repeats": common.chosen_repeats(options),
    }
    results = Results.begin(
        options.output / f"depth-{options.family}.json",
        command="bench depth",
        device=device,
        settings=settings,
        resume=options.resume,
    )
    with report.progress() as progress:
        for depth in depths:
            if results.holds(depth=depth):
                continue
            ended = {row["method"] for row in results.rows if "error" in row and row["depth"] < depth}
            task = progress.add_task(f"{depth} {options.family} blocks", total=None)
            results.add(_measure(depth, options, device, ended))
            progress.remove_task(task)
    table = _table(results.rows, options.family, shape, options.budget)
    table.show(report)
    write_markdown(results.path.with_suffix(".md"), [table], results.header)
    title = f"One training step of {options.family} blocks"
    plot_depth(results.rows, results.path.with_suffix(".png"), title=title, budget=options.budget)
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


def _measure(depth: int, options: argparse.Namespace, device: torch.device, ended: set[str]) -> list[Row]:
    torch.manual_seed(0)
    network = family(options.family, depth)
    model = network.build().to(device)
    step = TrainingStep(network.example().to(device), options.dtype)
    builds = ways.methods(network, options.gammas, arithmetics=("exact",))
    with step.autocast():
        variants = {
            name: built(lambda build=build: build(model, step.x))  # type: ignore[misc]
            for name, build in builds.items()
            if name not in ended
        }
    rows = measure(variants, step, repeats=common.chosen_repeats(options), budget=options.budget)
    return [{"depth": depth, "method": name, **row} for name, row in rows.items()]


def _table(rows: Sequence[Row], name: str, shape: Sequence[int], budget: int | None) -> Table:
    cells = []
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["depth"] != row["depth"]
        seconds = row["step_seconds"]
        cells.append(
            (
                str(row["depth"]) if first else "",
                row["method"],
                *[format_bytes(row[key]) if row[key] else "" for key in ("peak_bytes", "saved_bytes")],
                row["error"] if seconds is None else f"{seconds * 1000:.0f} ms",
            )
        )
    notes = [
        f"Input {arguments.shape_text(shape)}; memory beside parameters and gradients, held: between forward and "
        "backward."
    ]
    return Table(
        f"One training step of {name} blocks",
        ("blocks", "method", "peak memory", "held", "step time"),
        cells,
        notes=[*notes, *([] if budget is None else _deepest(rows, budget))],
    )


def _deepest(rows: Sequence[Row], budget: int) -> list[str]:
    """A line for each method: the deepest network that it trains within the budget."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        fitting = [row for row in own if "error" not in row]
        best = max(fitting, key=lambda row: int(row["depth"]), default=None)
        failed = min((row["depth"] for row in own if "error" in row), default=None)
        what = "none" if best is None else f"{best['depth']} blocks, peak {format_bytes(best['peak_bytes'])}"
        end = "the deepest tried" if failed is None else f"{failed} blocks do not fit"
        lines.append(f"Deepest network within {format_bytes(budget)}, {method}: {what} ({end}).")
    return lines
