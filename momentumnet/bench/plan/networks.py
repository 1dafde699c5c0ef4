"""The networks whose plans are compared with what is measured, and what goes in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from momentumnet.bench.measuring.training_step import squared
from momentumnet.bench.networks.language_models import transformer_layer
from momentumnet.bench.networks.measured import ResidualMLP, Stack

VOCABULARY = 2000


@dataclass(frozen=True)
class PlannedNetwork:
    """A network whose steps are planned.

    Attributes:
        build: Makes it, with random weights.
        example: Makes its inputs, given the batch size: a tensor, positional or keyword arguments.
        loss: Of its output.
        batches: Batch sizes.
    """

    build: Callable[[], nn.Module]
    example: Callable[[int], Any]
    loss: Callable[[Any], Tensor]
    batches: tuple[int, int] = (4, 8)


class UNet(nn.Module):
    """An encoder and a decoder that takes up what the encoder had at each resolution; without residual blocks."""

    def __init__(self, *, width: int, levels: int) -> None:
        super().__init__()
        widths = [width << level for level in range(levels)]
        self.down = nn.ModuleList(
            double_convolution(before, own) for before, own in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(own, before, 2, stride=2) for before, own in itertools.pairwise(widths)
        )
        self.joined = nn.ModuleList(double_convolution(2 * own, own) for own in widths[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if not level else F.max_pool2d(x, 2))
            skips.append(x)
        for up, block, skip in zip(self.up[::-1], self.joined[::-1], skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        output: Tensor = self.head(x)
        return output


def double_convolution(before: int, own: int) -> nn.Sequential:
    """Two convolutions of three by three, each with its norm and ReLU."""
    layers: list[nn.Module] = []
    for taken in (before, own):
        layers += [nn.Conv2d(taken, own, 3, padding=1, bias=False), nn.BatchNorm2d(own), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _images(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, 3, size, size)


def _vision(name: str, size: int, *, batches: tuple[int, int] = (4, 8), **options: Any) -> PlannedNetwork:
    return PlannedNetwork(partial(get_model, name, weights=None, **options), _images(size), squared, batches)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM  # an extra: `pip install 'momentumnet[hf]'`

    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, use_cache=False, **sizes))
    return model


def _tokens(batch: int) -> dict[str, Tensor]:
    tokens = torch.randint(VOCABULARY, (batch, 128))
    return {"input_ids": tokens, "labels": tokens}


def _detection(size: int) -> PlannedNetwork:
    """Images with a box each; the sum of its losses."""

    def example(batch: int) -> tuple[list[Tensor], list[Mapping[str, Tensor]]]:
        target = {"boxes": torch.tensor([[10.0, 10.0, size / 2, size / 2]]), "labels": torch.tensor([1])}
        return [torch.rand(3, size, size) for _ in range(batch)], [target] * batch

    build = partial(
        fasterrcnn_resnet50_fpn,
        weights=None,
        weights_backbone=None,
        num_classes=5,
        min_size=size,
        max_size=size,
        rpn_post_nms_top_n_train=100,  # its proposals are random
        box_batch_size_per_image=32,
    )
    return PlannedNetwork(build, example, lambda losses: torch.stack(list(losses.values())).sum(), (1, 2))


NETWORKS = {
    "resnet50": _vision("resnet50", 32, batches=(16, 32)),
    "resnet152": _vision("resnet152", 32, batches=(16, 32)),
    "vit_b_16": _vision("vit_b_16", 96, image_size=96),
    "llama": PlannedNetwork(_llama, _tokens, lambda output: output.loss),
    "maxvit_t": _vision("maxvit_t", 224, batches=(1, 2)),
    "fasterrcnn": _detection(64),
    "encoder-200": PlannedNetwork(
        lambda: Stack(*[transformer_layer(64) for _ in range(200)]),
        lambda batch: torch.randn(batch, 32, 64),
        squared,
        (8, 16),
    ),
    # All its time is the host's.
    "mlp-200": PlannedNetwork(
        lambda: Stack(*[ResidualMLP(64) for _ in range(200)]), lambda batch: torch.randn(batch, 64), squared, (128, 256)
    ),
    "unet": PlannedNetwork(lambda: UNet(width=16, levels=4), _images(64), squared),
}
# Small ones, in seconds.
QUICK_NETWORKS = ("unet",)
