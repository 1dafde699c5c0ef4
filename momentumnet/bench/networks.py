"""The networks whose training steps are measured: where their blocks are, and what goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        build: Makes it, with random weights.
        example: Makes its input.
        containers: Where its blocks are, in the order in which they run.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Tensor]
    containers: tuple[str, ...] = ("blocks",)


class Stack(nn.Module):
    """Residual blocks in a row."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.blocks(x)
        return output


class ResidualMLP(nn.Module):
    """The block ``x + W2 tanh(W1 x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.branch(x)
        return output


class CausalDecoder(nn.Module):
    """A language model like GPT: embeddings, pre-norm layers that look back only, and a head."""

    def __init__(self, *, depth: int, width: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(transformer_layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        output: Tensor = self.head(self.norm(x))
        return output


def transformer_layer(width: int) -> nn.Module:
    """A pre-norm layer of 64 features a head; no dropout, as language models are trained today."""
    return nn.TransformerEncoderLayer(
        width, max(1, width // 64), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def _resnet(name: str, size: int, *, batch: int = 16) -> Network:
    return Network(partial(get_model, name, weights=None), partial(torch.randn, batch, 3, size, size), RESNET_LAYERS)


def _vit() -> nn.Module:
    """ViT-B/32; torchvision starts its head at zero, and so every gradient of the first step."""
    model: nn.Module = get_model("vit_b_32", weights=None)
    nn.init.trunc_normal_(model.get_parameter("heads.head.weight"), std=0.02)
    return model


def _decoder(*, depth: int, width: int, length: int, vocabulary: int, batch: int = 8) -> Network:
    return Network(
        partial(CausalDecoder, depth=depth, width=width, length=length, vocabulary=vocabulary),
        partial(torch.randint, vocabulary, (batch, length)),
    )


NETWORKS = {
    "resnet50-64": _resnet("resnet50", 64),
    "resnet50-128": _resnet("resnet50", 128),
    "resnet101-64": _resnet("resnet101", 64),
    "resnet101-128": _resnet("resnet101", 128),
    "resnet152-64": _resnet("resnet152", 64),
    "encoder-48": Network(
        lambda: Stack(*[transformer_layer(256) for _ in range(48)]), partial(torch.randn, 8, 128, 256)
    ),
    "gpt-12": _decoder(depth=12, width=256, length=128, vocabulary=1000),
    "vit-12": Network(_vit, partial(torch.randn, 32, 3, 224, 224), ("encoder.layers",)),
    "mlp-200": Network(lambda: Stack(*[ResidualMLP(64) for _ in range(200)]), partial(torch.randn, 256, 64)),
    # Large ones, for GPUs.
    "resnet50-224": _resnet("resnet50", 224, batch=64),
    "resnet101-224": _resnet("resnet101", 224, batch=64),
    "gpt-24": _decoder(depth=24, width=1024, length=1024, vocabulary=50257),
}
CPU_NETWORKS = tuple(name for name in NETWORKS if not name.endswith("-224") and name != "gpt-24")
GPU_NETWORKS = ("resnet50-224", "resnet101-224", "gpt-24", "mlp-200")
QUICK_NETWORKS = ("gpt-12", "mlp-200")

FAMILIES = ("resnet", "transformer", "mlp")


def family(name: str, depth: int) -> Network:
    """``depth`` equal blocks: ResNet's basic blocks, pre-norm transformer layers, or narrow residual layers."""
    block, example = {
        "resnet": (partial(BasicBlock, 32, 32), partial(torch.randn, 8, 32, 32, 32)),
        "transformer": (partial(transformer_layer, 128), partial(torch.randn, 8, 64, 128)),
        "mlp": (partial(ResidualMLP, 64), partial(torch.randn, 256, 64)),
    }[name]
    return Network(lambda: Stack(*[block() for _ in range(depth)]), example)
