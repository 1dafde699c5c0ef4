"""``momentumnet bench peers``: gradient error, memory and time beside other reversible libraries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from momentumnet.bench.peers import runs
from momentumnet.bench.peers.tables import tables
from momentumnet.bench.reporting.results import Results
from momentumnet.cli import arguments
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench.outcome import finish
from momentumnet.cli.options import CommandText, chosen_device

WIDTH, BATCH = 64, 128
TEXT = CommandText(
    "gradient error, memory and time beside other libraries",
    """\
Train residual networks of narrow tanh layers with each library's own backward pass and compare: the error of the
gradient, peak memory, and time. The peers are installed from PyPI into a virtual environment of their own, which
uses the PyTorch that is running. A peer that fails is shown with its error.""",
    """\
examples:
  momentumnet bench peers
  momentumnet bench peers --venv peers-venv --depths 10,100,1000 --gammas 0.9
  momentumnet bench peers --only "this package" --only "momentumnet 0.10"

Writes peers.json, peers.md and peers.png to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(benchmarks, "peers", TEXT, run)
    command.add_argument(
        "--depths", type=arguments.depths, metavar="N,...", help="(default: 10,50,100,200,400; with --quick 10,20)"
    )
    command.add_argument(
        "--gammas",
        type=arguments.gammas,
        metavar="G,...",
        help="(default: 0.99,0.9,1/2,1/8; with --quick 1/2); peers without a gamma run once",
    )
    command.add_argument(
        "--venv", type=Path, metavar="DIR", help="environment for the peers, kept (default: a temporary one)"
    )
    command.add_argument(
        "--only", action="append", choices=[peer.name for peer in runs.PEERS], metavar="PEER", help="once for each"
    )
    common.add_repeats(command)
    common.add_resume(command, unit="peer")


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CheckpointError: ``--resume`` finds results of something else.
        NoEnvironmentError: The peers' environment cannot be made.
    """
    from momentumnet.bench.peers.plot import plot_peers
    from momentumnet.cli.report import Report

    report, device = Report.of(options), chosen_device(options)
    depths = options.depths or ([10, 20] if options.quick else [10, 50, 100, 200, 400])
    fractions = options.gammas or arguments.gammas("1/2" if options.quick else "0.99,0.9,1/2,1/8")
    gammas, repeats = [float(gamma) for gamma in fractions], common.chosen_repeats(options)
    # One thread: these layers are too small to share among several.
    settings = {"device": str(device), "width": WIDTH, "batch": BATCH, "repeats": repeats, "threads": 1}
    results = Results.begin(
        options.output / "peers.json",
        command="bench peers",
        device=device,
        settings={**settings, "depths": depths, "gammas": gammas},
        resume=options.resume,
    )
    peers = [peer for peer in runs.PEERS if not options.only or peer.name in options.only]
    with runs.environment_for(peers, options.venv) as environment, report.progress() as progress:
        task = progress.add_task("", total=len(peers))
        for peer in peers:
            progress.update(task, description=peer.name)
            if not results.holds(peer=peer.name):
                used = environment if peer.requirements else None
                results.add(runs.measure(peer, runs.runs_of(peer, depths, gammas), settings, used))
            progress.advance(task)
    names = [peer.name for peer in runs.PEERS]
    results.rows.sort(key=lambda row: names.index(row["peer"]))
    finish(report, results, tables(results.rows), plot_peers)
