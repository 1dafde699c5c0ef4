"""Contract line 13: DDP and FSDP2 on two processes give the gradients of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP
from tests.processes import PROCESSES, run_in_two

DDP_MODES = ["ddp", "ddp_static_graph", "ddp_unused", "ddp_no_sync"]
NORM_MODES = ["ddp_norm"]
FSDP_MODES = ["fsdp_root", "fsdp_block", "fsdp_block_taps", "fsdp_block_early"]


class WithSpare(ResidualMLP):
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


def build(mode: str, backward: str) -> nn.Module:
    torch.manual_seed(0)
    kind = {"ddp_unused": WithSpare, "ddp_norm": NormOverProcesses}.get(mode, ResidualMLP)
    parent = {"fsdp_block_taps": TappedChain, "fsdp_block_early": EarlyChain}.get(mode, Chain)
    chain = parent([kind() for _ in range(4)])
    return mn.convert(chain, streams=["blocks"], backward=backward, gamma=0.5)


def data() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def wrapped(net: nn.Module, mode: str, world: int) -> nn.Module:
    if mode.startswith("ddp"):
        return DistributedDataParallel(
            net, static_graph=mode == "ddp_static_graph", find_unused_parameters=mode == "ddp_unused"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    if mode.startswith("fsdp_block"):
        for block in net.get_submodule("blocks"):
            fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def gradients_of(mode: str, rank: int, world: int) -> dict[str, Tensor | None]:
    """The gradients of a second step, and the buffers after it."""
    net = build(mode, "reversible")
    model = wrapped(net, mode, world)
    x = data().chunk(world)[rank]
    for _ in range(2):  # a second step: static graphs and re-sharded parameters show only then
        model.zero_grad()
        if mode == "ddp_no_sync":
            with model.no_sync():
                loss(model, x).backward()
        loss(model, x).backward()
    gradients = {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in net.named_parameters()
    }
    return gradients | dict(net.named_buffers())


def worker(rank: int, folder: Path) -> None:
    for mode in modes():
        gradients = gradients_of(mode, rank, PROCESSES)
        if rank == 0:
            torch.save(gradients, folder / f"{mode}.pt")


def modes() -> list[str]:
    return DDP_MODES + NORM_MODES + (FSDP_MODES if hasattr(torch.distributed.fsdp, "fully_shard") else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradients of every mode, from one pair of processes: starting them is most of the time."""
    path = tmp_path_factory.mktemp("gradients")
    run_in_two(worker, path)
    return path


@pytest.mark.parametrize("mode", DDP_MODES + NORM_MODES + FSDP_MODES)
def test_two_processes_give_the_gradients_of_one(mode: str, folder: Path) -> None:
    if mode not in modes():
        pytest.skip("this PyTorch has no FSDP2 (torch.distributed.fsdp.fully_shard)")
    got = torch.load(folder / f"{mode}.pt")
    reference = build(mode, "stored")
    for _ in range(2):
        reference.zero_grad()
        (loss(reference, data()) * (2 if mode == "ddp_no_sync" else 1)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()} | dict(reference.named_buffers())
    assert {name for name, grad in got.items() if grad is None} == {n for n, grad in expected.items() if grad is None}
    for name, gradient in expected.items():
        if gradient is not None:
            # By norm: sums are taken in another order, and entries that nearly cancel (a bias before a norm) are noise.
            assert (got[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name
