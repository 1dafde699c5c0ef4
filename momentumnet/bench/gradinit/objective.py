"""How GradInit's objective falls: the loss after one step, before and after its iterations."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from momentumnet.bench.data.images import ImageData
from momentumnet.bench.gradinit.networks import GAMMA, LR, STEP_SIZE, Cell, network
from momentumnet.bench.reporting.results import Row
from momentumnet.conversion.conversion import convert
from momentumnet.init import gradinit_
from momentumnet.init.overlap import overlapping
from momentumnet.loss.batches import Batch

PROBES = 8  # pairs of batches on which the objective is taken before and after


def objective(net: nn.Module, batches: Sequence[Batch]) -> float:
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


def falls(data: ImageData, *, depth: int, batch_size: int, steps: int) -> Iterator[Cell]:
    """The objective before and after, from two starts, before and after conversion.

    Args:
        data: Images and classes.
        depth: Layers of the network.
        batch_size: Images in a batch.
        steps: GradInit's iterations.
    """
    for start in ("Kaiming", "PyTorch's"):
        for converted in (False, True):
            key = {"part": "fall", "start": start, "converted": converted}
            options = {"depth": depth, "batch_size": batch_size, "steps": steps}
            yield key, functools.partial(_fall, data, start, converted=converted, **options)


def _fall(data: ImageData, start: str, *, converted: bool, depth: int, batch_size: int, steps: int) -> Row:
    batches = list(data.train_batches(batch_size, 0))
    probes = list(data.train_batches(batch_size, 1))[: 2 * PROBES]
    net = network(depth, start)
    if converted:
        net = convert(net, batches[0][0], gamma=GAMMA)
    before = objective(net, probes)
    report = gradinit_(net, F.cross_entropy, batches, step_size=STEP_SIZE, lr=LR, steps=steps, progress=False)
    return {
        "gradient_norms": list(report.gradient_norms),
        "losses": list(report.losses),
        "before": before if math.isfinite(before) else None,
        "after": objective(net, probes),
    }
