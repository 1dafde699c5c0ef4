"""Modules whose saved tensors go to host memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from momentumnet.core.outside.offload import Offload
from momentumnet.streams.blocks.roles import apply, offloaded


class Images(nn.Module):
    """Channels last, a tensor that is changed in place, views of one storage, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.convolution(x)), inplace=True)
        first, second, third = y.chunk(3, dim=1)
        y = torch.cat([first.sigmoid() * second, third, second.transpose(2, 3).transpose(2, 3).exp()], dim=1)
        return x + self.out(functional.dropout(y, 0.3))


class Attention(nn.Module):
    """Queries, keys and values as views of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Checkpointing(nn.Module):
    """Recomputes its inside itself."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = Attention(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.tanh(), use_reentrant=self.reentrant).exp()


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (Images, (4, 3, 8, 8)),
    "attention": (Attention, (4, 6, 16)),
    "lstm": (lambda: First(nn.LSTM(16, 16, batch_first=True)), (4, 6, 16)),
    "checkpoint": (lambda: Checkpointing(reentrant=False), (4, 6, 16)),
    "reentrant checkpoint": (lambda: Checkpointing(reentrant=True), (4, 6, 16)),
}


class First(nn.Module):
    """What a module returns first."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


def built(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """Four modules in a row."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    x = torch.randn(shape, dtype=dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return nn.Sequential(*(build() for _ in range(4))).to(dtype), x


def offloading(model: nn.Module, *units: tuple[str, str | None]) -> nn.Module:
    """A copy of which these modules are offloaded, until the one behind."""
    net = copy.deepcopy(model)
    apply(net, [], offloaded(Offload([name], behind) for name, behind in units))
    return net


ALL = ("0", "1"), ("1", "2"), ("2", "3"), ("3", None)


class Wave(nn.Module):
    """Keeps its input, something inside, and its output."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin().exp().sigmoid()


def waves(count: int = 4) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(Wave() for _ in range(count))), torch.randn(32, 16, requires_grad=True)
