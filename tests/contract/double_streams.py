"""Networks whose blocks take image and text and change both, as double-stream blocks of diffusion transformers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH

IMAGE, TEXT = 24, 9
DEPTH = 4
GAMMA = 1 / 8

Pair = tuple[Tensor, Tensor]


def branch() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Double(nn.Module):
    """Attention of image and text over both, then an MLP on each."""

    def __init__(self, first: str = "image") -> None:
        super().__init__()
        self.first = first
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(branch() for _ in range(2))

    def attended(self, image: Tensor, text: Tensor) -> list[Tensor]:
        joint = [qkv(norm(z)) for qkv, norm, z in zip(self.qkv, self.norms, (image, text), strict=True)]
        q, k, v = torch.cat(joint, 1).chunk(3, -1)
        both = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ v
        return [out(z) for out, z in zip(self.out, both.split([image.shape[1], text.shape[1]], 1), strict=True)]

    def forward(self, image: Tensor, text: Tensor) -> Any:
        image, text = (z + more for z, more in zip((image, text), self.attended(image, text), strict=True))
        image, text = image + self.mlp[0](image), text + self.mlp[1](text)
        return (image, text) if self.first == "image" else (text, image)


def positional(block: Double, image: Tensor, text: Tensor) -> Pair:
    found = block(image, text)
    return found if block.first == "image" else (found[1], found[0])


class Net(nn.Module):
    """Double-stream blocks between a stem for each of the two and a head for both.

    Args:
        first: which of the two a block returns first.
        depth: number of blocks.
        block: makes one.
        call: calls one.
        between: what the network makes of image and text between two blocks.
    """

    def __init__(
        self,
        first: str = "image",
        depth: int = DEPTH,
        *,
        block: Callable[[str], nn.Module] = Double,
        call: Callable[[Any, Tensor, Tensor], Pair] = positional,
        between: Callable[[Tensor, Tensor], Pair] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stems = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.blocks = nn.ModuleList(block(first) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 3)
        self.call, self.between = call, between

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = self.stems[0](image), self.stems[1](text)
        for place, block in enumerate(self.blocks):
            if place and self.between is not None:
                image, text = self.between(image, text)
            image, text = self.call(block, image, text)
        return self.head(torch.cat([image, text.to(image.dtype)], 1))


def by_hand(net: Net, gamma: float, pair: Pair) -> Tensor:
    """The rule as it is written, on each of the two."""
    a, b = (stem(z) for stem, z in zip(net.stems, pair, strict=True))
    v_a, v_b = torch.zeros_like(a), torch.zeros_like(b)
    for block in net.blocks:
        next_a, next_b = net.call(block, a, b)
        v_a = gamma * v_a + (1 - gamma) * (next_a - a)
        v_b = gamma * v_b + (1 - gamma) * (next_b - b)
        a, b = a + v_a, b + v_b
    flush = gamma / (1 - gamma)
    return net.head(torch.cat([a + flush * v_a, b + flush * v_b], 1))


def both(dtype: torch.dtype = torch.float32) -> Pair:
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(2, count, WIDTH, generator=generator) for count in (IMAGE, TEXT))
    return image.to(dtype), text.to(dtype)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Of all parameters and inputs that have one, after a step on `both`."""
    net.zero_grad(set_to_none=True)
    dtype = next(net.parameters()).dtype
    image, text = (z.requires_grad_() for z in both(dtype))
    net(image, text).float().square().mean().backward()
    named = [*net.named_parameters(), ("image", image), ("text", text)]
    return {name: tensor.grad for name, tensor in named if tensor.grad is not None}


def held(net: nn.Module) -> int:
    """Bytes that wait for backward."""
    net(*both())
    return mn.measure_memory(lambda: net(*both())).saved_bytes


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
