"""The networks whose training steps are measured: where their blocks are, and what goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock

from momentumnet.bench.networks.language_models import CausalDecoder, LlamaDecoder, transformer_layer

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


def _resnet(name: str, size: int, *, batch: int = 16) -> Network:
    return Network(partial(get_model, name, weights=None), partial(torch.randn, batch, 3, size, size), RESNET_LAYERS)


def _vit(name: str) -> Network:
    return Network(partial(_vit_with_head, name), partial(torch.randn, 32, 3, 224, 224), ("encoder.layers",))


def _vit_with_head(name: str) -> nn.Module:
    """A vision transformer; torchvision starts its head at zero, and so every gradient of the first step."""
    model: nn.Module = get_model(name, weights=None)
    nn.init.trunc_normal_(model.get_parameter("heads.head.weight"), std=0.02)
    return model


def _language_model(
    kind: type[CausalDecoder] | type[LlamaDecoder],
    *,
    depth: int,
    width: int = 1024,
    length: int = 1024,
    vocabulary: int = 32000,
) -> Network:
    return Network(
        partial(kind, depth=depth, width=width, length=length, vocabulary=vocabulary),
        partial(torch.randint, vocabulary, (8, length)),
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
    # So small that all its time is the host's: what the methods cost beside the blocks.
    "encoder-24-narrow": Network(
        lambda: Stack(*[transformer_layer(8) for _ in range(24)]), partial(torch.randn, 2, 3, 8)
    ),
    "gpt-12": _language_model(CausalDecoder, depth=12, width=256, length=128, vocabulary=1000),
    "llama-4": _language_model(LlamaDecoder, depth=4, width=64, length=32, vocabulary=100),
    "vit-12": _vit("vit_b_32"),
    "mlp-200": Network(lambda: Stack(*[ResidualMLP(64) for _ in range(200)]), partial(torch.randn, 256, 64)),
    # Large ones, for GPUs.
    "resnet50-224": _resnet("resnet50", 224, batch=64),
    "resnet50-224-256": _resnet("resnet50", 224, batch=256),
    "resnet101-224": _resnet("resnet101", 224, batch=64),
    "resnet152-224": _resnet("resnet152", 224, batch=64),
    "resnet152-224-256": _resnet("resnet152", 224, batch=256),
    "vit-l-16": _vit("vit_l_16"),
    "gpt-24": _language_model(CausalDecoder, depth=24, vocabulary=50257),
    "llama-24": _language_model(LlamaDecoder, depth=24),
    "llama-48": _language_model(LlamaDecoder, depth=48),
}
CPU_NETWORKS = (
    "resnet50-64",
    "resnet50-128",
    "resnet101-64",
    "resnet101-128",
    "resnet152-64",
    "encoder-48",
    "gpt-12",
    "vit-12",
    "mlp-200",
)
GPU_NETWORKS = ("resnet50-224", "resnet152-224", "vit-l-16", "llama-24", "llama-48", "mlp-200")
QUICK_NETWORKS = ("llama-4", "mlp-200")

FAMILIES = ("resnet", "transformer", "mlp")


def family(name: str, depth: int) -> Network:
    """``depth`` equal blocks: ResNet's basic blocks, pre-norm transformer layers, or narrow residual layers."""
    block, example = {
        "resnet": (partial(BasicBlock, 32, 32), partial(torch.randn, 8, 32, 32, 32)),
        "transformer": (partial(transformer_layer, 128), partial(torch.randn, 8, 64, 128)),
        "mlp": (partial(ResidualMLP, 64), partial(torch.randn, 256, 64)),
    }[name]
    return Network(lambda: Stack(*[block() for _ in range(depth)]), example)
