"""``MomentumNet`` of whichever momentumnet is installed: this package, or the original one up to 0.10."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from momentumnet import MomentumNet


def build(branches: Sequence[nn.Module], gamma: float, stored: bool) -> nn.Module:
    """The momentum rule; its own backward pass runs the network backwards."""
    return MomentumNet(list(branches), gamma=gamma, use_backprop=stored)
