"""Networks whose steps take a peak of their own kind, and what such a step takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from momentumnet.streams.tracing.trace import call_with_example
from tests.models import ResidualMLP


class UNet(nn.Module):
    """Three resolutions; what the way down had is taken up on the way up. No stream."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._pair(before, own) for before, own in ((3, 8), (8, 16), (16, 32)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(before, own, 2, stride=2) for before, own in ((32, 16), (16, 8)))
        self.joined = nn.ModuleList(self._pair(before, own) for before, own in ((32, 16), (16, 8)))
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _pair(before: int, own: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(before, own, 3, padding=1), nn.BatchNorm2d(own), nn.ReLU(inplace=True)),
            *(nn.Conv2d(own, own, 3, padding=1), nn.BatchNorm2d(own), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, block, skip in zip(self.up, self.joined, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], dim=1))
        output: Tensor = self.head(x)
        return output


class Stage(nn.Module):
    """Layers that keep their shape, with a classifier of many classes: a layer with large gradients, in no part."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(64, 5000)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        output: Tensor = self.head(x)
        return output


def flattened() -> nn.Module:
    """What its last part saves and returns is what the classifier behind keeps."""
    layers: list[nn.Module] = []
    for before, own in ((3, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(before, own, 3, padding=1), nn.BatchNorm2d(own), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 256, 64))


def large_weights() -> nn.Module:
    """Under autocast the bytes are those of weights in its type, and of their gradients."""
    return nn.Sequential(*(ResidualMLP(256) for _ in range(12)))


def llama() -> nn.Module:
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1000, use_cache=False, **sizes))


def long_stream() -> nn.Module:
    """Blocks that begin with a layer of which autocast casts the input, that is no leaf in a step."""
    return nn.Sequential(*(ResidualMLP(64) for _ in range(60)))


def tokens() -> dict[str, Tensor]:
    found = torch.randint(1000, (4, 64), generator=torch.Generator().manual_seed(1))
    return {"input_ids": found, "labels": found}


def squared(output: Tensor) -> Tensor:
    return output.float().square().mean()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Callable[[Any], Tensor]]] = {
    "unet": (UNet, lambda: torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), squared),
    "flattened": (flattened, lambda: torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1)), squared),
    "large classifier": (Stage, lambda: torch.randn(16, 64, generator=torch.Generator().manual_seed(1)), squared),
    "llama": (llama, tokens, lambda output: output.loss),
    "large weights": (large_weights, lambda: torch.randn(8, 256, generator=torch.Generator().manual_seed(1)), squared),
    "long stream": (long_stream, lambda: torch.randn(256, 64, generator=torch.Generator().manual_seed(1)), squared),
}


class Step:
    """Forward and backward pass, as a training loop has it that holds the output."""

    def __init__(self, name: str, *, autocast: bool) -> None:
        torch.manual_seed(0)
        build, example, self.loss = NETWORKS[name]
        self.model, self.example, self._autocast = build().train(), example(), autocast

    def under_autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._autocast)

    def __call__(self, net: nn.Module) -> None:
        net.zero_grad(set_to_none=True)
        with self.under_autocast():
            output = call_with_example(net, self.example)
            loss = self.loss(output)
        loss.backward()

    def gradients(self, net: nn.Module) -> dict[str, Tensor]:
        self(net)
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
