"""The network that GradInit is looked at on, and what a cell of the benchmark is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.reporting.results import Row
from momentumnet.init import kaiming_

GAMMA, STEP_SIZE, LR = 0.9, 0.1, 5e-2
Cell = tuple[Row, Callable[[], Row]]  # what a row is about, and how it is measured


def network(depth: int, start: str, *, normalised: bool = False) -> nn.Module:
    """CIFAR's ResNet of this depth in training mode, with weights by ``start``, "Kaiming" or "PyTorch's"."""
    torch.manual_seed(0)
    net = build(f"resnet{depth}{'_bn' if normalised else ''}")
    if start == "Kaiming":
        kaiming_(net)
    return net.train()
