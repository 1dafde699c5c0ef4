"""GradInit on a 56-layer CIFAR ResNet without normalisation: how its objective falls, and what an iteration costs.

python -m benchmarks.gradinit --output benchmarks/results
python -m benchmarks.gradinit --data cifar10_small.npz --batch-size 16 --depth 20 --steps 10
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import momentumnet as mn
from momentumnet.cli.bench.cifar_images import ImageData, load_digits, load_npz
from momentumnet.cli.bench.cifar_networks import build
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.init import gradinit_, kaiming_
from momentumnet.init.overlap import overlapping

Batch = tuple[Tensor, Tensor]

GAMMA, STEP_SIZE, LR = 0.9, 0.1, 5e-2
PROBES = 8  # pairs of batches on which the objective is taken before and after
ALWAYS, NEVER = 1e9, 1e-9  # bounds of the gradient's norm that are met, or violated, whatever it is
MIB = 2**20


def network(depth: int, start: str, *, normalised: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = build(f"resnet{depth}{'_bn' if normalised else ''}")
    if start == "Kaiming":
        kaiming_(net)
    return net.train()


def objective(net: nn.Module, batches: list[Batch]) -> float:
    """The loss after one step of SGD, mean over batches that the initialisation has not seen."""
    parameters, found = dict(net.named_parameters()), []
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        loss = F.cross_entropy(functional_call(net, {**parameters, **buffers}, (first[0],)), first[1])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            stepped = {name: p - STEP_SIZE * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
            inputs, target = overlapping(first, second)
            found.append(float(F.cross_entropy(functional_call(net, {**stepped, **buffers}, (inputs,)), target)))
    return statistics.mean(found)


Cell = tuple[Row, Callable[[], Row]]  # what a row is about, and how it is measured


def falls(data: ImageData, options: argparse.Namespace) -> Iterator[Cell]:
    """The objective before and after, from two starts, before and after conversion."""
    for start in ("Kaiming", "PyTorch's"):
        for converted in (False, True):
            key = {"part": "fall", "start": start, "converted": converted}
            yield key, functools.partial(_fall, data, options, start, converted=converted)


def _fall(data: ImageData, options: argparse.Namespace, start: str, *, converted: bool) -> Row:
    batches = list(data.train_batches(options.batch_size, 0))
    probes = list(data.train_batches(options.batch_size, 1))[: 2 * PROBES]
    net = network(options.depth, start)
    if converted:
        net = mn.convert(net, batches[0][0], gamma=GAMMA)
    before = objective(net, probes)
    report = gradinit_(net, F.cross_entropy, batches, step_size=STEP_SIZE, lr=LR, steps=options.steps, progress=False)
    return {
        "gradient_norms": list(report.gradient_norms),
        "losses": list(report.losses),
        "before": before if math.isfinite(before) else None,
        "after": objective(net, probes),
    }


def double_backward(net: nn.Module, first: Batch, second: Batch, bound: float) -> tuple[Tensor, ...]:
    """The plain way: scales, gradient, step and loss in one autograd graph."""
    parameters = dict(net.named_parameters())
    scales = [torch.ones((), requires_grad=True) for _ in parameters]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    scaled = {name: m * p.detach() for m, (name, p) in zip(scales, parameters.items(), strict=True)}
    loss = F.cross_entropy(functional_call(net, {**scaled, **buffers}, (first[0],)), first[1])
    gradients = torch.autograd.grad(loss, list(scaled.values()), create_graph=True)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    if norm > bound:
        return torch.autograd.grad(norm, scales)
    stepped = {name: p - STEP_SIZE * g for (name, p), g in zip(scaled.items(), gradients, strict=True)}
    inputs, target = overlapping(first, second)
    after = F.cross_entropy(functional_call(net, {**stepped, **buffers}, (inputs,)), target)
    return torch.autograd.grad(after, scales)


def costs(options: argparse.Namespace) -> Iterator[Cell]:
    """Time and peak memory of an iteration, on noise of CIFAR's size."""
    for depth, size, normalised in ((options.depth, 16, False), (options.deep, 128, True)):
        net = network(depth, "PyTorch's", normalised=normalised)
        first, second = [(torch.randn(size, 3, 32, 32), torch.randint(10, (size,))) for _ in range(2)]
        for bound in (ALWAYS,) if normalised else (ALWAYS, NEVER):
            for name, run in _methods(net, first, second, bound).items():
                # The deep network shows what fits: the others keep the whole batch's activations several times over.
                if not normalised or name in (f"gradinit_, chunk={size // 4}", "gradinit_, checkpoint"):
                    key = {
                        "part": "cost",
                        "network": f"ResNet-{depth} {'with' if normalised else 'without'} BN, batch {size}",
                        "case": "met" if bound == ALWAYS else "violated",
                        "method": name,
                    }
                    yield key, functools.partial(_measured, run, repeats=1 if normalised else options.repeats)


def _methods(net: nn.Module, first: Batch, second: Batch, bound: float) -> dict[str, Callable[[], Any]]:
    converted = mn.convert(net, first[0][:2], gamma=GAMMA)
    chunk = len(first[1]) // 4

    def own(net: nn.Module, **options: Any) -> Callable[[], Any]:
        return lambda: gradinit_(
            net, F.cross_entropy, (first, second), gradient_norm=bound, steps=1, progress=False, **options
        )

    return {
        "plain double backward": lambda: double_backward(net, first, second, bound),
        "gradinit_": own(net),
        f"gradinit_, chunk={chunk}": own(net, chunk=chunk),
        "gradinit_, checkpoint": own(net, checkpoint=True),
        "gradinit_, both": own(net, checkpoint=True, chunk=chunk),
        "gradinit_, converted": own(converted),
        "gradinit_, converted, checkpoint": own(converted, checkpoint=True),
    }


def _measured(run: Callable[[], Any], *, repeats: int) -> Row:
    peak = mn.measure_memory(run).peak_bytes
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return {"seconds": min(times), "peak_bytes": peak}


def tables(rows: list[Row], settings: dict[str, Any]) -> list[Table]:
    fall = [
        (
            row["start"],
            f"gamma {GAMMA:g}" if row["converted"] else "no",
            f"{row['gradient_norms'][0]:.3g}",
            f"{row['gradient_norms'][-1]:.3g}",
            str(settings["steps"] - len(row["losses"])),
            "not finite" if row["before"] is None else f"{row['before']:.3f}",
            f"{row['after']:.3f}",
            "" if row["before"] is None else f"{100 * (1 - row['after'] / row['before']):.0f} %",
        )
        for row in rows
        if row["part"] == "fall"
    ]
    own = [row for row in rows if row["part"] == "cost"]
    cost = [
        (
            row["network"],
            row["case"],
            row["method"],
            f"{row['seconds']:.2f}",
            f"{row['peak_bytes'] / MIB:.0f}",
        )
        for row in own
    ]
    what = f"ResNet-{settings['depth']} without normalisation, {settings['data']}, batch {settings['batch_size']}"
    return [
        Table(
            f"GradInit's objective, before and after {settings['steps']} iterations",
            ("start", "converted", "gradient norm first", "last", "violated", "objective before", "after", "fall"),
            fall,
            notes=[
                f"{what}; SGD, step size {STEP_SIZE}, gradient norm at most 1, lr {LR}. The objective, the loss after "
                f"one step, is taken on {PROBES} pairs of batches in an order that GradInit has not seen; 'violated': "
                "iterations that went down the gradient's norm."
            ],
        ),
        Table(
            "An iteration's cost",
            ("network", "constraint", "method", "seconds", "peak, MiB"),
            cost,
            notes=["32 x 32 pixels, SGD; fastest run; peak of what an iteration allocates, as measure_memory counts."],
            left=3,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["fall", "cost"], metavar="fall|cost", help="(default: both)")
    parser.add_argument("--data", type=Path, help="images as .npz (default: scikit-learn's digits)")
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--deep", type=int, default=110, help="depth of the network with normalisation")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    data = load_digits() if options.data is None else load_npz(options.data)
    settings = {"data": data.name, "depth": options.depth, "batch_size": options.batch_size, "steps": options.steps}
    path = options.output / f"gradinit-{data.name}.json"
    device = torch.device("cpu")
    results = Results.begin(
        path, command="gradinit", device=device, settings=settings, resume=True, anew="remove the file"
    )
    cells = {"fall": falls(data, options), "cost": costs(options)}
    for part in options.parts:
        for key, measure in cells[part]:
            if not results.holds(**key):
                row = {**key, **measure()}
                results.add([row])
                print({name: value for name, value in row.items() if not isinstance(value, list)}, flush=True)
    write_markdown(path.with_suffix(".md"), tables(results.rows, settings), results.header)


if __name__ == "__main__":
    main()
