"""Networks for several processes, and what one process computes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP

# Streams of more than 8 blocks or a larger gamma than 1/2 use all 32 bits: what differs then is the order of sums.
GAMMA = 0.75
BATCH = 8
TOLERANCE = 1e-6


class Spare(ResidualMLP):
    """A block with a parameter that its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)


class SumOverProcesses(torch.autograd.Function):
    """all_reduce, and its transpose in backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class NormOverProcesses(ResidualMLP):
    """Batch normalisation over all processes, as SyncBatchNorm does it: collectives in both passes of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        mean = self._over_processes(y.mean(0))
        variance = self._over_processes((y - mean).square().mean(0))
        self.running_mean.lerp_(mean.detach(), 0.1)
        return x + (y - mean) * torch.rsqrt(variance + 1e-5)

    def _over_processes(self, value: Tensor) -> Tensor:
        if not dist.is_initialized():
            return value
        return SumOverProcesses.apply(value) / dist.get_world_size()


class Shifted(ResidualMLP):
    """A block that reads a buffer, which processes other than the first have wrong until it is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        own = dist.get_rank() if dist.is_initialized() else 0
        self.register_buffer("shift", torch.full((WIDTH,), 0.3 + own))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x * self.shift)


class TappedChain(Chain):
    """Returns a value from the middle of the stream too."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.stem(x)
        taps = []
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return self.head(x) + taps[1].mean(-1, keepdim=True)


class EarlyChain(Chain):
    """Leaves its last two blocks out of the loss: backward rewinds them although no gradient comes to them."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        early = x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            early = x if index == 1 else early
        return self.head(early)


def data(shape: tuple[int, ...] = (BATCH, WIDTH)) -> Tensor:
    """The whole batch, the same in all processes."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def own(x: Tensor) -> Tensor:
    """This process's part of a batch."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def chain(block: type[nn.Module] = ResidualMLP, parent: type[Chain] = Chain, blocks: int = 4) -> Chain:
    torch.manual_seed(0)
    return parent([block() for _ in range(blocks)])


def converted(net: nn.Module, backward: str = "reversible", example: Tensor | None = None) -> Any:
    """The example is the whole batch, so that all processes, and one alone, take the same scale."""
    return mn.convert(net, data() if example is None else example, gamma=GAMMA, backward=backward, inplace=True)


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    """Whole ones, where processes hold parts of them."""
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def assert_same(found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], tolerance: float) -> None:
    """Equal by the norm of each, and None where None is expected.

    Of one whose terms cancel (a bias in front of a norm) no digit is left in any order of sums, so what counts there is
    the largest one.
    """
    assert found.keys() == expected.keys()
    largest = max(value.norm().item() for value in expected.values() if value is not None)
    assert largest > 0
    for name, value in expected.items():
        got = found[name]
        assert (got is None) == (value is None), name
        if got is not None and value is not None:
            assert (got - value).norm() <= tolerance * max(value.norm().item(), largest / 10), name
