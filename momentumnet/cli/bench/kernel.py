"""``momentumnet bench kernel``: the momentum step's bandwidth beside that of a plain addition."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from momentumnet.cli import arguments
from momentumnet.cli.bench import kernel_operations as kernels
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.timing import interleaved_seconds

if TYPE_CHECKING:
    pass

DESCRIPTION = """\
Time the exact momentum step and its inverse, native (where it is built) and in PyTorch operations, against x.add_(v)
on the same device: bytes per second over bytes per second. At 1.0 the step is as fast as memory allows."""
EPILOG = """\
examples:
  momentumnet bench kernel
  momentumnet bench kernel --elements 16777216 --threads 1,2,4 --gammas 1/8

Writes kernel.json, kernel.md and kernel.png to --output."""


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "kernel",
        summary="bandwidth of the momentum step",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    command.add_argument(
        "--elements",
        type=arguments.counts,
        metavar="N,...",
        help="sizes of the state (default: 1048576,16777216; with --quick 65536)",
    )
    command.add_argument(
        "--threads",
        type=arguments.counts,
        metavar="N,...",
        help="numbers of CPU threads (default: 1 and as many as PyTorch uses)",
    )
    command.add_argument(
        "--gammas", type=arguments.gammas, default="9/10", metavar="G,...", help="(default: %(default)s)"
    )
    common.add_repeats(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from momentumnet.cli.bench.plots import plot_kernel
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    sizes = options.elements or ([1 << 16] if options.quick else [1 << 20, 1 << 24])
    threads = [torch.get_num_threads()] if device.type == "cuda" else options.threads or [1, torch.get_num_threads()]
    settings = {"gammas": [str(gamma) for gamma in options.gammas], "repeats": common.chosen_repeats(options)}
    results = Results.begin(options.output / "kernel.json", command="bench kernel", device=device, settings=settings)
    with report.progress() as progress:
        task = progress.add_task("", total=len(options.gammas) * len(sizes) * len(set(threads)))
        for gamma in options.gammas:
            for elements in sizes:
                for count in sorted(set(threads)):
                    progress.update(task, description=f"gamma {gamma}, {elements} elements, {count} threads")
                    with _threads(count):
                        operations = kernels.operations(elements, gamma, device)
                        seconds = interleaved_seconds(operations, repeats=common.chosen_repeats(options), device=device)
                    results.add(_rows(seconds, elements=elements, gamma=str(gamma), threads=count))
                    progress.advance(task)
    table = _table(results.rows, results.header["machine"]["kernels"])
    table.show(report)
    write_markdown(results.path.with_suffix(".md"), [table], results.header)
    plot_kernel(results.rows, results.path.with_suffix(".png"))
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(seconds: Mapping[str, float], *, elements: int, **key: Any) -> list[Row]:
    return [
        {
            "elements": elements,
            **key,
            "operation": name,
            "seconds": duration,
            "bytes_per_second": elements * kernels.BYTES / duration,
            "rate_to_add": seconds[kernels.ADD] / duration,
        }
        for name, duration in seconds.items()
    ]


def _table(rows: list[Row], implementation: str) -> Table:
    cells = [
        (
            row["operation"],
            str(row["gamma"]),
            str(row["elements"]),
            str(row["threads"]),
            f"{row['seconds'] * 1000:.3g} ms",
            f"{row['bytes_per_second'] / 1e9:.3g} GB/s",
            f"{row['rate_to_add']:.3g}",
        )
        for row in rows
    ]
    return Table(
        "The momentum step's bandwidth",
        ("operation", "gamma", "elements", "threads", "time", "rate", "rate to x.add_(v)"),
        cells,
        notes=(
            f"Kernels: {implementation}.",
            f"Every operation moves the same bytes, {kernels.BYTES} for each element of the state; x.add_(v) runs over "
            "as many floats as that takes. 1 in the last column is the speed of memory.",
        ),
        left=1,
    )
