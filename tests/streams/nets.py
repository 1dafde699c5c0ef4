"""Hand-written networks, each of which shows one way in which parents call blocks or blocks make their skips."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from momentumnet.streams import discover, find_streams

WIDTH = 6


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, WIDTH)


class Block(nn.Module):
    """``combine(self, x, branch(x))``, by default ``x + branch(x)``."""

    def __init__(self, combine: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor] | None = None):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.norm = nn.LayerNorm(WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.combine = combine

    def forward(self, x):
        return x + self.branch(x) if self.combine is None else self.combine(self, x, self.branch(x))


class Other(Block):
    """A residual block of another class."""


def chain(count: int, combine: Callable[..., torch.Tensor] | None = None) -> nn.Sequential:
    return nn.Sequential(*(Block(combine) for _ in range(count)))


def summary(model: nn.Module, example_inputs: object) -> list[tuple[str, int, str]]:
    return [(stream.path, len(stream), stream.kind) for stream in find_streams(model, example_inputs)]


def reasons(model: nn.Module, example_inputs: object) -> str:
    found = discover(model, example_inputs)
    assert found.streams == ()
    return "\n".join(f"{rejection.blocks}: {rejection.reason}" for rejection in found.rejections)


def modules(count: int, build: Callable[[], nn.Module] = Block) -> nn.ModuleList:
    return nn.ModuleList(build() for _ in range(count))


def loop(self, x, *, start=0, stop=None):
    for block in self.layers[start:stop]:
        x = block(x)
    return x


class Calls(nn.Module):
    """A model whose forward is the function given, over modules held as attributes."""

    def __init__(self, call: Callable[..., torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.call = call

    def forward(self, *args, **kwargs):
        return self.call(self, *args, **kwargs)


class Normalise(nn.Module):
    """Layer normalisation written by hand: subtracts something that depends on its input, but has no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.weight * centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + self.bias


class TanhGelu(nn.Module):
    """An activation with additions of its input and a function of its input."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.045 * x**3)))


class Squeeze(nn.Module):
    """Multiplies its input by a gate: no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x * self.gate(x).sigmoid()


class ConcatHalves(nn.Module):
    """Passes one half of the channels on and works on the other, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH // 2, WIDTH // 2)

    def forward(self, x):
        kept, worked = x.chunk(2, dim=-1)
        joined = torch.cat((kept, self.branch(worked)), dim=-1)
        return joined.unflatten(-1, (2, WIDTH // 2)).transpose(-1, -2).flatten(-2)


class ConcatProject(nn.Module):
    """Concatenates its input and a branch and projects both: no skip past the matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(WIDTH, WIDTH)
        self.project = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return self.project(torch.cat((x, self.branch(x)), dim=-1))


class PreActivation(nn.Module):
    """A pre-activation block, whose first operation may overwrite the block's input."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return x + self.branch(x)


class AddsIntoInput(nn.Module):
    """``x += f(x)`` on its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x += self.linear(x)
        return x


class Attends(nn.Module):
    """A decoder block: takes keyword arguments in the order memory, mask, stream; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)

    def forward(self, *, memory, mask, hidden):
        weights = F.softmax(self.query(hidden) @ memory.transpose(-1, -2) + mask, dim=-1)
        return hidden + weights @ self.value(memory), weights


class FromMemory(nn.Module):
    """Adds its work to a side input: no skip from its first input, whatever the shapes say."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, memory):
        return memory + self.linear(x)


class DeepSum(nn.Module):
    """An addition of a tensor to itself, many times over: 2 ** 64 paths between input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        branch = self.linear(x)
        for _ in range(64):
            branch = 0.5 * (branch + branch)
        return x + branch


class Stage(nn.Module):
    """A container with a forward of its own around two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = chain(2)

    def forward(self, x):
        return self.blocks(x)


class Counting(nn.Module):
    """A block that counts its calls in a buffer, replaces another one and draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(WIDTH))

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().mean(dim=tuple(range(x.dim() - 1)))
        return x + self.linear(x) * torch.rand_like(x)
