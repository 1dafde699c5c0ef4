"""What a step of SAM costs beside its two passes: time and memory on ResNet-18, CPU.

OMP_NUM_THREADS=1 python -m benchmarks.sam_step --output benchmarks/results
python -m benchmarks.sam_step --cases 16x32 --repeats 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchvision.models.resnet import BasicBlock, ResNet

import momentumnet as mn
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.timing import interleaved_seconds
from momentumnet.cli.plain_report import PlainReport
from momentumnet.optim import SAM, Extragradient

CASES, QUICK_CASES = "16x32,64x32,16x64,64x64", "8x16"
BLOCK_COUNTS = {"ResNet-18": (2, 2, 2, 2), "ResNet-10": (1, 1, 1, 1)}
REFERENCE = "two passes, one step"
BLOCKS = "SAM, blocks="
TARGET = 1.05
CHUNKS = 4
# Small, so that the network still is one after hundreds of steps on the same labels, which are drawn by chance.
OPTIONS: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}

Operation = Callable[[], object]


def operations(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Operation]:
    """A step of each method. They share the network, so that its parameters lie in the same memory for all."""

    def base() -> Optimizer:
        return SGD(net.parameters(), **OPTIONS)

    def stepping(optimizer: Optimizer) -> Operation:
        return lambda: optimizer.step(_closure(net, optimizer, x, y))

    def chunked(optimizer: SAM) -> Operation:
        m = len(x) // CHUNKS
        return lambda: optimizer.step_chunks(lambda x, y: F.cross_entropy(net(x), y), x, y, m=m)

    return {
        REFERENCE: _plain(net, base(), x, y, passes=2),
        "the same again": _plain(net, base(), x, y, passes=2),
        "one pass, one step": _plain(net, base(), x, y, passes=1),
        "SAM": stepping(SAM(net.parameters(), base(), model=net)),
        "SAM without model=": stepping(SAM(net.parameters(), base())),
        "adaptive SAM": stepping(SAM(net.parameters(), base(), model=net, adaptive=True, rho=0.5)),
        "Extragradient": stepping(Extragradient(net.parameters(), base(), model=net)),
        BLOCKS: stepping(SAM(net.parameters(), base(), model=net, blocks=parts(net))),
        f"SAM, step_chunks in {CHUNKS}": chunked(SAM(net.parameters(), base(), model=net)),
    }


def _plain(net: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, passes: int) -> Operation:
    closure = _closure(net, optimizer, x, y)

    def run() -> None:
        for _ in range(passes):
            closure()
        optimizer.step()

    return run


def _closure(net: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> Callable[[], Any]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()

    return closure


def parts(net: nn.Module) -> list[list[Tensor]]:
    """The parameters of each residual block, and all others."""
    blocks = [list(module.parameters()) for module in net.modules() if isinstance(module, BasicBlock)]
    inside = {parameter for block in blocks for parameter in block}
    return [*blocks, [parameter for parameter in net.parameters() if parameter not in inside]]


def measured(network: str, batch: int, size: int, repeats: int) -> list[Row]:
    """A row for each method."""
    torch.manual_seed(0)
    net = ResNet(BasicBlock, list(BLOCK_COUNTS[network]), num_classes=10).train()
    runs = operations(net, torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))
    for run in runs.values():
        run()  # makes the state of the base optimizer, and the libraries' workspaces
    turns = {BLOCKS: len(parts(net))}  # each step perturbs another block, and the largest counts
    peaks = {name: max(_peak(net, run) for _ in range(turns.get(name, 1))) for name, run in runs.items()}
    seconds = interleaved_seconds(runs, repeats=repeats, device=torch.device("cpu"))
    copy = sum(parameter.nbytes for parameter in net.parameters())
    return [
        {
            "batch": batch,
            "size": size,
            "method": name,
            "seconds": seconds[name],
            "time_to_reference": seconds[name] / seconds[REFERENCE],
            "peak_bytes": peaks[name],
            "extra_copies": (peaks[name] - peaks[REFERENCE]) / copy,
        }
        for name in runs
    ]


def _peak(net: nn.Module, run: Operation) -> int:
    net.zero_grad()
    return mn.measure_memory(run).peak_bytes


def table(rows: Sequence[Row], settings: dict[str, Any]) -> Table:
    cells, previous = [], None
    for row in rows:
        case = f"{row['batch']} x {row['size']}²"
        cells.append(
            (
                "" if case == previous else case,
                row["method"],
                f"{1000 * row['seconds']:.1f}",
                f"{row['time_to_reference']:.3f}",
                f"{row['extra_copies']:+.2f}",
            )
        )
        previous = case
    notes = [
        f"{settings['network']} of torchvision, 10 classes, SGD with momentum; cases are images in a batch x their "
        f"side squared. Medians of {settings['repeats']} runs, in which the methods took turns; to reference: to the "
        f"median of '{REFERENCE}', which is two forward and backward passes and one step of SGD. "
        f"Target for SAM: at most {TARGET}.",
        "copies: peak memory of a step beyond that of the reference, in copies of the parameters, by measure_memory. "
        "blocks= perturbs one residual block at a time, or all that is in none; the figure is of the largest of them.",
    ]
    columns = ("case", "method", "ms", "to reference", "copies")
    return Table("A step of SAM", columns, cells, notes=notes)


def _cases(text: str) -> list[tuple[int, int]]:
    found = []
    for case in text.split(","):
        batch, cross, size = case.partition("x")
        # In the last layers of the smallest images batch normalisation needs two images in a chunk.
        if not (batch.isdigit() and cross and size.isdigit() and int(batch) >= 2 * CHUNKS and int(size) > 0):
            raise argparse.ArgumentTypeError(
                f"{case!r} is no batch ({2 * CHUNKS} or more) x image size; write for example 16x32"
            )
        found.append((int(batch), int(size)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=_cases, help=f"batch x image size, ... (default: {CASES})")
    parser.add_argument("--repeats", type=int, help="(default: 15; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="a small version that takes seconds")
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args(arguments)
    settings = {
        "network": "ResNet-10" if options.quick else "ResNet-18",
        "cases": options.cases or _cases(QUICK_CASES if options.quick else CASES),
        "repeats": options.repeats or (1 if options.quick else 15),
        "sgd": OPTIONS,
    }
    results = Results.begin(
        options.output / "sam-step.json", command="sam_step", device=torch.device("cpu"), settings=settings
    )
    for batch, size in settings["cases"]:
        results.add(measured(settings["network"], batch, size, settings["repeats"]))
    found = table(results.rows, settings)
    found.show(PlainReport(as_json=False))
    write_markdown(results.path.with_suffix(".md"), [found], results.header)


if __name__ == "__main__":
    main()
