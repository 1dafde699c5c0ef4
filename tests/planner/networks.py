"""Small networks with their inputs, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


def images(batch: int = 8, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(batch: int = 8) -> Tensor:
    return torch.randn(batch, 48, 64, generator=torch.Generator().manual_seed(1))


def encoder(dropout: float = 0.1) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=dropout)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


def narrow_resnet() -> nn.Module:
    return resnet18(num_classes=10)


class Plain(nn.Module):
    """No stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet18": (narrow_resnet, images),
    "encoder": (encoder, tokens),
    "plain": (Plain, images),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    return build().train(), example()
