"""``momentumnet bench zoo``: every torchvision model, converted."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from typing import Any

from momentumnet import whole_file
from momentumnet.bench.zoo import models
from momentumnet.bench.zoo.measure import Row, measure
from momentumnet.bench.zoo.table import table
from momentumnet.cli.bench.options import add_cpu_benchmark
from momentumnet.cli.options import CommandText, add_count

TEXT = CommandText(
    "every torchvision model, converted",
    """\
Convert every torchvision model without naming its streams: what is found, the bytes that it saves, and the difference
of one training step's gradients, reversible against stored. On the CPU, with random weights and small inputs.""",
    """\
examples:
  momentumnet bench zoo
  momentumnet bench zoo resnet50 vit_b_32

Each model is written as soon as it is done: the same command goes on where the last one ended. Writes zoo.jsonl and
zoo.md to --output.""",
)


def add_parser(benchmarks: Any) -> None:
    """Adds the benchmark to the subcommands of ``bench``."""
    command = add_cpu_benchmark(benchmarks, "zoo", TEXT, run)
    command.add_argument("models", nargs="*", metavar="MODEL", help="torchvision names (default: all of them)")
    add_count(command, "--batch", 2)


def run(options: argparse.Namespace) -> None:
    """Runs the benchmark."""
    from momentumnet.cli.report import Report

    report, log = Report(as_json=options.json), options.output / "zoo.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [Row(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
    done = {row.model for row in rows}
    for name in options.models or [name for name in models.names() if name not in models.LARGE] + list(models.LARGE):
        if name in done:
            continue
        row = measure(name, batch=options.batch)
        gc.collect()
        rows.append(row)
        report.line(f"{row.model:40s} {row.blocks:4d} {row.gradient_error} {row.seconds:.1f}s {row.note}")
        whole_file.write_text(log, "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    rows.sort(key=lambda row: row.model)
    path = log.with_suffix(".md")
    whole_file.write_text(path, table(rows))
    report.line(f"Written: {log}, and .md beside it")
    report.result({"command": "bench zoo", "rows": [dataclasses.asdict(row) for row in rows]})
