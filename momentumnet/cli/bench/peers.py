"""``momentumnet bench peers``: gradient error, memory and time beside other reversible libraries."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from momentumnet.cli import arguments
from momentumnet.cli.bench import options as common
from momentumnet.cli.bench import peer_runs, peers_tables
from momentumnet.cli.bench.environment import Environment
from momentumnet.cli.bench.peer_runs import Peer, Run
from momentumnet.cli.bench.results import Results, write_markdown

WIDTH, BATCH = 64, 128
DESCRIPTION = """\
Train residual networks of narrow tanh layers with each library's own backward pass and compare: the error of the
gradient, peak memory, and time. The peers are installed from PyPI into a virtual environment of their own, which
uses the PyTorch that is running. A peer that fails is shown with its error."""
EPILOG = """\
examples:
  momentumnet bench peers
  momentumnet bench peers --venv peers-venv --depths 10,100,1000 --gammas 0.9
  momentumnet bench peers --only "this package" --only "momentumnet 0.10"

Writes peers.json, peers.md and peers.png to --output."""


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = common.add_benchmark(
        benchmarks,
        "peers",
        summary="gradient error, memory and time beside other libraries",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
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
        "--only", action="append", choices=[peer.name for peer in peer_runs.PEERS], metavar="PEER", help="once for each"
    )
    common.add_repeats(command)
    common.add_resume(command, unit="peer")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark.

    Raises:
        CommandError: The environment cannot be made, or ``--resume`` finds something else.
    """
    from momentumnet.cli.bench.plots import plot_peers
    from momentumnet.cli.report import Report

    report = Report(as_json=options.json)
    device = arguments.chosen_device(options)
    depths = options.depths or ([10, 20] if options.quick else [10, 50, 100, 200, 400])
    fractions = options.gammas or arguments.gammas("1/2" if options.quick else "0.99,0.9,1/2,1/8")
    gammas = [float(gamma) for gamma in fractions]
    # One thread: these layers are too small to share among several.
    settings = {
        "device": str(device),
        "width": WIDTH,
        "batch": BATCH,
        "repeats": common.chosen_repeats(options),
        "threads": 1,
    }
    results = Results.begin(
        options.output / "peers.json",
        command="bench peers",
        device=device,
        settings={**settings, "depths": depths, "gammas": gammas},
        resume=options.resume,
    )
    peers = [peer for peer in peer_runs.PEERS if not options.only or peer.name in options.only]
    with _environment(options.venv, peers) as environment, report.progress() as progress:
        task = progress.add_task("", total=len(peers))
        for peer in peers:
            progress.update(task, description=peer.name)
            if not results.holds(peer=peer.name):
                used = environment if peer.requirements else None
                results.add(peer_runs.measure(peer, _runs(peer, depths, gammas), settings, used))
            progress.advance(task)
    tables = peers_tables.tables(results.rows)
    for table in tables:
        table.show(report)
    write_markdown(results.path.with_suffix(".md"), tables, results.header)
    plot_peers(results.rows, results.path.with_suffix(".png"))
    report.line(f"Written: {results.path}, and .md and .png beside it")
    report.result(results.values())


@contextmanager
def _environment(folder: Path | None, peers: Sequence[Peer]) -> Iterator[Environment | None]:
    if not any(peer.requirements for peer in peers):
        yield None
    elif folder is not None:
        yield Environment(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="momentumnet-peers-") as temporary:
            yield Environment(Path(temporary, "venv"))


def _runs(peer: Peer, depths: Sequence[int], gammas: Sequence[float]) -> list[Run]:
    if peer.rule == "additive":
        return [(depth, None) for depth in depths]
    return [(depth, gamma) for gamma in gammas for depth in depths]
