"""Stacks of residual blocks at any depth, and the ways to train them whose cost is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock

from momentumnet.convert import convert

STORED, CHECKPOINT = "stored", "checkpoint"
FAMILIES = ("resnet", "transformer")


class _CheckpointedBlock(nn.Module):
    """A block whose activations PyTorch's checkpointing computes again."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, x, use_reentrant=False)


def example_input(family: str) -> Tensor:
    """A batch for the stacks of a family: 8 images of 32 channels and 32 x 32 pixels, or 8 sequences of 64 x 128."""
    return torch.randn(8, 32, 32, 32) if family == "resnet" else torch.randn(8, 64, 128)


def stack(family: str, depth: int) -> nn.Sequential:
    """``depth`` residual blocks in a row: ResNet's basic blocks, or pre-norm transformer encoder layers."""
    return nn.Sequential(*[_block(family) for _ in range(depth)])


def _block(family: str) -> nn.Module:
    if family == "resnet":
        return BasicBlock(32, 32)
    return nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True, norm_first=True)


def methods(gammas: Sequence[Fraction]) -> dict[str, Callable[[nn.Sequential, Tensor], nn.Module]]:
    """The ways to train a stack, by name: as it is, checkpointed block by block, and converted at each gamma."""
    named: dict[str, Callable[[nn.Sequential, Tensor], nn.Module]] = {
        STORED: lambda blocks, _: blocks,
        CHECKPOINT: lambda blocks, _: nn.Sequential(*[_CheckpointedBlock(block) for block in blocks]),
    }
    for gamma in gammas:
        named[momentum_name(gamma)] = lambda blocks, x, gamma=gamma: convert(blocks, x, gamma=gamma)  # type: ignore[misc]
    return named


def momentum_name(gamma: Fraction) -> str:
    """How a converted network is called in tables and plots."""
    return f"momentum {gamma}"
