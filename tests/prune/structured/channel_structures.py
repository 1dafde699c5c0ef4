"""The channels of networks, halved at a time, and a step of training for these."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.prune import apply_masks, magnitude_scores
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.structured.channels import ChannelStructure
from tests.prune.structured.structured_nets import images, network

LABELS = torch.arange(6) % 5


@functools.cache
def structure_of(name: str, dtype: torch.dtype = torch.float64) -> ChannelStructure:
    return ChannelStructure(network(name, dtype), images(dtype, size=2))


def halved(name: str, dtype: torch.dtype = torch.float64) -> tuple[ChannelStructure, Masks, nn.Module]:
    """The structure, masks on half of the channels, and the network with these masks."""
    structure, net = structure_of(name, dtype), network(name, dtype)
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    apply_masks(net, masks)
    return structure, masks, net


def backward(net: nn.Module, x: Tensor) -> Tensor:
    net.train()
    net.zero_grad()
    loss = F.cross_entropy(net(x), LABELS)
    loss.backward()
    return loss


def channels_gone(structure: ChannelStructure, masks: Masks) -> list[int]:
    """By the rows of the producers' weights."""
    rows = [masks[f"{group.producers[0]}.weight"].flatten(1).any(1) for group in structure.groups]
    return [int((~row).sum()) for row in rows]


def two_layers() -> tuple[nn.Module, ChannelStructure]:
    """Filters of 2 and 4 weights; the mean magnitudes are 1, 4 (layer 0) and 2, 3, 5 (layer 2)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-1.0, 1.0], [4.0, -4.0]]))
        net[2].weight.copy_(torch.tensor([[2.0, 2.0], [-3.0, 3.0], [5.0, 5.0]]))
    return net, ChannelStructure(net, torch.randn(4, 2))
