"""What the blocks of the fuzz test do to their branch: operations by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import momentumnet as mn

WIDTH, ROWS = 8, 6


class Operation(nn.Module):
    """What a block does to its branch ``h``; ``x`` is the block's input, ``extra`` a further argument of its call."""

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        raise NotImplementedError


class Plain(Operation):
    """A function of the branch."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return self.function(h)


class Layer(Operation):
    """A layer, on the branch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return self.layer(h)


class Autocast(Layer):
    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(h).to(h.dtype)


class Checkpointed(Layer):
    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return checkpoint(self.layer, h, use_reentrant=False)


class SavedOnCpu(Layer):
    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return self.layer(h)


class Inner(Layer):
    """A residual block in a block."""

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return h + torch.tanh(self.layer(h))


class Running(Operation):
    """Reads and moves a buffer, in place or by putting another one in its place."""

    mean: Tensor

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.in_place = in_place

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                moved = 0.9 * self.mean + 0.1 * h.mean(0)
                if self.in_place:
                    self.mean.copy_(moved)
                else:
                    self.mean = moved
        return h - self.mean


class OwnNoise(Operation):
    """Noise of a generator of its own, which nobody puts back."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(5)

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return h * (1 + 0.5 * torch.rand(h.shape, generator=self.source).to(h.dtype))


class PythonNoise(Operation):
    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return h * (1 + random.random())


class Counting(Operation):
    """Python state that moves with each call, where nobody puts it back."""

    calls: list[int] = [0]  # noqa: RUF012

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        self.calls[0] += 1
        return h * (1 + 0.1 * self.calls[0])


class KeptMask(Operation):
    """Makes a tensor in its first call and keeps it."""

    mask: Tensor | None = None

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.arange(WIDTH) % 3 != 0
        return torch.where(self.mask, h, 0.3 * h)


class Appending(Operation):
    """A cache that grows with each call, and is used as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: list[Tensor] = []

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        self.cache.append(h.detach().mean())
        return h * (1 + torch.stack(self.cache).sum().tanh())


class ByPosition(Operation):
    """A cache that is written and read at the place of the next call: only an index tells one call from another."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        place = self.next % WIDTH
        self.next += 1
        slots = torch.zeros(WIDTH, ROWS, dtype=h.dtype).index_put((torch.tensor([place]),), h.mean(1)[None])
        return h + slots[place][:, None]


class Adding(Operation):
    """Uses the further argument."""

    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        return h + torch.tanh(extra)


class ChangingExtra(Operation):
    def forward(self, h: Tensor, x: Tensor, extra: Tensor) -> Tensor:
        extra.data.mul_(1.5)
        return h + torch.tanh(extra)


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (h,) = ctx.saved_tensors
        return 2 * grad * (1 - h.tanh() ** 2)


def _slice_in_place(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, ::2] = 2 * h[:, 1::2]
    return h


def _view_in_place(h: Tensor) -> Tensor:
    h = h * 1
    h.view(-1)[::3].mul_(0.5)
    return h


def _by_own_statistics(h: Tensor) -> Tensor:
    with torch.no_grad():
        deviation = h.std()
    return h / (1 + deviation)


def _largest_first(h: Tensor) -> Tensor:
    return h.gather(1, h.argsort(1, descending=True))


def _largest_of_pairs(h: Tensor) -> Tensor:
    return F.max_pool1d(h[:, None], 2)[:, 0].repeat(1, 2)


def _by_what_is_read(h: Tensor) -> Tensor:
    return 0.5 * h if float(h.detach().abs().max()) > 1 else h


def _outlier(h: Tensor) -> Tensor:
    mask = torch.zeros(WIDTH, dtype=h.dtype)
    mask[3] = 1e4
    return h + mask


def _hooked(h: Tensor) -> Tensor:
    h = h * 1
    if h.requires_grad:
        h.register_hook(lambda grad: 1.5 * grad)
    return h


def _attention(h: Tensor) -> Tensor:
    heads = h.view(1, ROWS, 2, WIDTH // 2).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.2).transpose(1, 2).reshape(ROWS, WIDTH)


def _function(function: Callable[[Tensor], Tensor]) -> Callable[[], Operation]:
    return lambda: Plain(function)


def _layer(make: Callable[[], nn.Module], kind: type[Layer] = Layer) -> Callable[[], Operation]:
    return lambda: kind(make())


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def _nested_stream() -> nn.Module:
    layers = [nn.Sequential(linear(), nn.Tanh()) for _ in range(2)]
    return mn.MomentumNet(layers, gamma=0.5, use_backprop=False)


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "linear": _layer(linear),
    "tanh": _function(torch.tanh),
    "gelu": _function(F.gelu),
    "relu": _function(F.relu),
    "relu in place": _function(torch.relu_),
    "mul in place": _function(lambda h: h.mul_(0.5)),
    "add in place": _function(lambda h: h.add_(0.25)),
    "slice in place": _function(_slice_in_place),
    "view in place": _function(_view_in_place),
    "softmax": _function(lambda h: h.softmax(1)),
    "cumsum": _function(lambda h: h.cumsum(1)),
    "turned": _function(lambda h: h.view(ROWS, 2, -1).transpose(1, 2).reshape(ROWS, WIDTH)),
    "expanded": _function(lambda h: h.mean(1, keepdim=True).expand(ROWS, WIDTH)),
    "not contiguous": _function(lambda h: h.t().clone().t()),
    "roundtrip float64": _function(lambda h: h.double().sin().to(h.dtype)),
    "roundtrip bfloat16": _function(lambda h: h.bfloat16().sin().to(h.dtype)),
    "fourier": _function(lambda h: torch.fft.rfft(h.float(), n=2 * WIDTH - 2).abs().to(h.dtype)),
    "detached": _function(lambda h: h + h.detach().tanh()),
    "own statistics": _function(_by_own_statistics),
    "largest first": _function(_largest_first),
    "largest of pairs": _function(_largest_of_pairs),
    "read": _function(_by_what_is_read),
    "outlier": _function(_outlier),
    "times 300": _function(lambda h: 300 * h),
    "times 1e-3": _function(lambda h: 1e-3 * h),
    "hooked": _function(_hooked),
    "attention": _function(_attention),
    "autograd function": _function(ScaledGradient.apply),
    "vmap": _function(torch.func.vmap(lambda row: row.tanh() * row.sum())),
    "dropout": _layer(lambda: nn.Dropout(0.3)),
    "dropout in place": _layer(lambda: nn.Dropout(0.3, inplace=True)),
    "batch norm": _layer(lambda: nn.BatchNorm1d(WIDTH)),
    "batch norm, no momentum": _layer(lambda: nn.BatchNorm1d(WIDTH, momentum=None)),
    "layer norm": _layer(lambda: nn.LayerNorm(WIDTH)),
    "spectral norm": _layer(lambda: spectral_norm(linear())),
    "weight norm": _layer(lambda: weight_norm(linear())),
    "autocast": _layer(linear, Autocast),
    "checkpointed": _layer(lambda: nn.Sequential(linear(), nn.Tanh(), nn.Dropout(0.2)), Checkpointed),
    "saved on cpu": _layer(lambda: nn.Sequential(linear(), nn.Tanh()), SavedOnCpu),
    "inner block": _layer(linear, Inner),
    "nested stream": _layer(_nested_stream),
    "buffer in place": lambda: Running(in_place=True),
    "buffer replaced": lambda: Running(in_place=False),
    "kept mask": KeptMask,
    "extra": Adding,
    "by position": ByPosition,
    "appending": Appending,
    "own generator": OwnNoise,
}
# Not to be made again: refused.
HOSTILE: dict[str, Callable[[], Operation]] = {
    "python generator": PythonNoise,
    "counting": Counting,
    "changing extra": ChangingExtra,
}

IN_PLACE = ("relu in place", "mul in place", "add in place", "dropout in place")
