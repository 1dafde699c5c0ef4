"""The networks that the contract suite runs over: small, seeded, each with a stream that discovery finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth

WIDTH = 16


class ResidualMLP(nn.Module):
    """x + W2 tanh(W1 x)."""

    def __init__(self, width: int = WIDTH, hidden: int | None = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, hidden or width), nn.Tanh(), nn.Linear(hidden or width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Chain(nn.Module):
    """Linear, a stack of blocks that the parent loops over, Linear."""

    def __init__(self, blocks: list[nn.Module], width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, *args, **kwargs)
        return self.head(x)


class Scaled(nn.Module):
    """x + tanh(a x): one shared parameter, so that only the stream's memory grows with depth."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.a * x)


class Flat(nn.Module):
    """Layers in a row, then a stream."""

    def __init__(self, *layers: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.blocks = nn.Sequential(*[ResidualMLP(width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.blocks(x)


class SpectralBlock(nn.Module):
    """A residual block whose weight is divided by its largest singular value; the power iteration moves a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = spectral_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class DepthDropBlock(nn.Module):
    """Dropout and stochastic depth: two draws from the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.3))
        self.drop = StochasticDepth(0.4, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.inner(x))


class SideInputBlock(nn.Module):
    """Takes a memory and a mask that need gradients, nested tensors, a None, and plain values; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        bias: list[Tensor],
        *,
        mask: dict[str, Tensor],
        nothing: None,
        scale: float,
        mode: str,
    ) -> tuple[Tensor, Tensor]:
        if nothing is not None or mode != "sum":
            raise RuntimeError("an argument was lost on the way")
        weight = torch.sigmoid(self.query(x) + bias[0] + mask["m"])
        branch = scale * weight * self.value(memory)
        return x + branch, weight.mean()


class SideInputChain(nn.Module):
    """Loops over blocks with side inputs, and uses their second outputs too."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.memory = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([SideInputBlock() for _ in range(depth)])

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        memory = torch.tanh(self.memory(x))
        extras = []
        for block in self.blocks:
            x, extra = block(x, memory, [bias], mask={"m": mask}, nothing=None, scale=0.5, mode="sum")
            extras.append(extra)
        return x * (1 + torch.stack(extras).sum())


class ResNetLike(nn.Module):
    """Convolution, a Sequential of torchvision blocks, pooled head."""

    def __init__(self, block: type[nn.Module], depth: int = 3) -> None:
        super().__init__()
        width = 8
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        planes = width // getattr(block, "expansion", 1)
        self.layer1 = nn.Sequential(*[block(width, planes) for _ in range(depth)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Case:
    """One network of the suite: how it is built, and inputs that need gradients where they can."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    buffers_change: bool = False
    draws: bool = False

    def model(self) -> nn.Module:
        """The network with its seeded weights, in training mode."""
        torch.manual_seed(7)
        return self.build().train()

    def example(self) -> tuple[Tensor, ...]:
        """The same inputs in every call."""
        generator_state = torch.get_rng_state()
        torch.manual_seed(11)
        inputs = self.inputs()
        torch.set_rng_state(generator_state)
        return inputs


def _encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


CASES = [
    Case("mlp", lambda: Chain([ResidualMLP() for _ in range(4)]), lambda: (torch.randn(5, WIDTH),)),
    Case("basic_block", lambda: ResNetLike(BasicBlock), lambda: (torch.randn(2, 3, 8, 8),), buffers_change=True),
    Case("bottleneck", lambda: ResNetLike(Bottleneck), lambda: (torch.randn(2, 3, 8, 8),), buffers_change=True),
    Case("encoder_pre_norm", lambda: _encoder(norm_first=True), lambda: (torch.randn(2, 5, WIDTH),), draws=True),
    Case("encoder_post_norm", lambda: _encoder(norm_first=False), lambda: (torch.randn(2, 5, WIDTH),), draws=True),
    Case(
        "side_inputs",
        SideInputChain,
        lambda: (torch.randn(5, WIDTH), torch.randn(WIDTH), torch.randn(5, WIDTH)),
    ),
    Case(
        "spectral_norm",
        lambda: Chain([SpectralBlock() for _ in range(3)]),
        lambda: (torch.randn(5, WIDTH),),
        buffers_change=True,
    ),
    Case(
        "stochastic_depth",
        lambda: Chain([DepthDropBlock() for _ in range(3)]),
        lambda: (torch.randn(6, WIDTH),),
        draws=True,
    ),
]
