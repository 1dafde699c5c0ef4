"""What an iteration of GradInit costs, beside the plain way: time and peak memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from momentumnet.bench.gradinit.networks import GAMMA, STEP_SIZE, Cell, network
from momentumnet.bench.reporting.results import Row
from momentumnet.conversion.conversion import convert
from momentumnet.init import gradinit_
from momentumnet.init.overlap import overlapping
from momentumnet.loss.batches import Batch
from momentumnet.memory import measure_memory

ALWAYS, NEVER = 1e9, 1e-9  # bounds of the gradient's norm that are met, or violated, whatever it is


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


def costs(*, depth: int, deep: int, repeats: int) -> Iterator[Cell]:
    """Time and peak memory of an iteration, on noise of CIFAR's size.

    Args:
        depth: Layers of the network without normalisation.
        deep: Layers of the network with it.
        repeats: Timed runs of each method on the former; the fastest counts.
    """
    for layers, size, normalised in ((depth, 16, False), (deep, 128, True)):
        net = network(layers, "PyTorch's", normalised=normalised)
        first, second = [(torch.randn(size, 3, 32, 32), torch.randint(10, (size,))) for _ in range(2)]
        for bound in (ALWAYS,) if normalised else (ALWAYS, NEVER):
            for name, run in _methods(net, first, second, bound).items():
                # The deep network shows what fits: the others keep the whole batch's activations several times over.
                if not normalised or name in (f"gradinit_, chunk={size // 4}", "gradinit_, checkpoint"):
                    key = {
                        "part": "cost",
                        "network": f"ResNet-{layers} {'with' if normalised else 'without'} BN, batch {size}",
                        "case": "met" if bound == ALWAYS else "violated",
                        "method": name,
                    }
                    yield key, functools.partial(_measured, run, repeats=1 if normalised else repeats)


def _methods(net: nn.Module, first: Batch, second: Batch, bound: float) -> dict[str, Callable[[], Any]]:
    converted = convert(net, first[0][:2], gamma=GAMMA)
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
    peak = measure_memory(run).peak_bytes
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return {"seconds": min(times), "peak_bytes": peak}
