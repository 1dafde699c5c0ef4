"""What ``bench sam-step`` measures: a step of SAM in its variants, and two plain passes with one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchvision.models.resnet import BasicBlock

from momentumnet.optim import SAM, Extragradient

REFERENCE = "two passes, one step"
BLOCKS = "SAM, blocks="
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
