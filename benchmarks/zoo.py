"""Convert every torchvision model and write a table: streams, blocks, bytes saved, gradient error.

python -m benchmarks.zoo --output benchmarks/results/zoo.md
python -m benchmarks.zoo resnet50 vit_b_32
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision

import momentumnet as mn
from benchmarks import zoo_models as zoo
from momentumnet.memory import format_bytes

GAMMA = 1 / 8


@dataclass
class Row:
    """One model of the table."""

    model: str
    streams: str = ""
    blocks: int = 0
    kind: str = ""
    saved_before: int = 0
    saved_after: int = 0
    gradient_error: float | None = None
    note: str = ""
    seconds: float = 0.0


def measure(name: str, *, batch: int) -> Row:
    """Find the streams, convert, and compare one training step's gradients, reversible against stored."""
    start = time.perf_counter()
    row = Row(name)
    model = zoo.build(name)
    large = name in zoo.LARGE
    batch = 1 if large or name.startswith(("mvit", "swin3d", "maxvit")) else batch
    try:
        plan = mn.plan(model, zoo.inputs(name, batch=batch), gamma=GAMMA)
    except mn.ConversionError as error:
        row.note = str(error).splitlines()[0][:160]
    else:
        row.streams = " ".join(f"{r.path or '(root)'}:{r.blocks}" for r in plan.rows)
        row.blocks = sum(r.blocks for r in plan.rows)
        row.kind = "+".join(sorted({r.kind for r in plan.rows}))
        row.saved_before, row.saved_after = plan.saved_before, plan.saved_after
        if large:
            net = mn.convert(model, zoo.inputs(name, batch=batch), gamma=GAMMA, inplace=True)
            with torch.no_grad():
                zoo.run(net, zoo.inputs(name, batch=batch))
            row.note = "over 250 million parameters: found, converted, one forward"
        else:
            row.gradient_error = gradient_error(model, name, batch)
    row.seconds = time.perf_counter() - start
    return row


def gradient_error(model: torch.nn.Module, name: str, batch: int) -> float:
    """Relative L2 difference of one training step's gradients, reversible against stored."""
    example, step = zoo.inputs(name, batch=batch), zoo.inputs(name, batch=batch, training=True)
    gradients = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, example, gamma=GAMMA, backward=backward).train()
        gradients.append(zoo.gradient(net, step))
        del net
    stored, reversible = gradients
    return float((reversible - stored).norm() / stored.norm())


def table(rows: list[Row]) -> str:
    """The rows as a Markdown document."""
    found = [row for row in rows if row.blocks]
    errors = [row.gradient_error for row in found if row.gradient_error is not None]
    lines = [
        "# Every torchvision model, converted",
        "",
        f"torchvision {torchvision.__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, {datetime.date.today()}. Random weights, small inputs, gamma 1/8, "
        '`others="keep"`. No names were given: the streams were found by tracing. '
        f"{len(found)} of {len(rows)} models have streams; largest gradient error {max(errors, default=0.0):.1e} "
        "(reversible against stored, one training step, relative L2).",
        "",
        "| model | streams (path:blocks) | blocks | kind | saved for backward | after | gradient error | note |",
        "|---|---|---:|---|---:|---:|---:|---|",
    ]
    for row in rows:
        error = "" if row.gradient_error is None else f"{row.gradient_error:.1e}"
        before = format_bytes(row.saved_before) if row.blocks else ""
        after = format_bytes(row.saved_after) if row.blocks else ""
        lines.append(
            f"| {row.model} | {row.streams} | {row.blocks or ''} | {row.kind} | {before} | {after} | {error} "
            f"| {row.note} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the table; rows are kept as JSON lines beside it, so that an interrupted run goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="torchvision names; all of them by default")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    names = arguments.models or [n for n in zoo.names() if n not in zoo.LARGE] + list(zoo.LARGE)
    log = arguments.output.with_suffix(".jsonl") if arguments.output else None
    rows = [Row(**json.loads(line)) for line in log.read_text().splitlines()] if log and log.exists() else []
    done = {row.model for row in rows}
    for name in names:
        if name in done:
            continue
        row = measure(name, batch=arguments.batch)
        gc.collect()
        rows.append(row)
        print(f"{row.model:40s} {row.blocks:4d} {row.gradient_error} {row.seconds:.1f}s {row.note}", flush=True)
        if log:
            with log.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    if arguments.output:
        arguments.output.write_text(table(sorted(rows, key=lambda row: row.model)))


if __name__ == "__main__":
    main()
