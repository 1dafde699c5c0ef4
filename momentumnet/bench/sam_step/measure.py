"""One case of ``bench sam-step``: time and memory of each method's step."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.reporting.results import Row
from momentumnet.bench.sam_step.operations import BLOCKS, REFERENCE, Operation, operations, parts
from momentumnet.memory import measure_memory

BLOCK_COUNTS = {"ResNet-18": (2, 2, 2, 2), "ResNet-10": (1, 1, 1, 1)}


def measure(network: str, batch: int, size: int, *, repeats: int) -> list[Row]:
    """A row for each method.

    Args:
        network: One of `BLOCK_COUNTS`.
        batch: Images in a batch.
        size: Their side.
        repeats: Timed runs of each method, which take turns.
    """
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
    return measure_memory(run).peak_bytes
