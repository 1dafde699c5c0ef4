"""Contract line 13: DDP and FSDP2 on two processes give the gradients of one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP

DDP_MODES = ["ddp", "ddp_static_graph", "ddp_unused", "ddp_no_sync"]
FSDP_MODES = ["fsdp_root", "fsdp_block", "fsdp_block_taps"]


class WithSpare(ResidualMLP):
    """A block with a parameter that its forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)


class TappedChain(Chain):
    """Returns a value from the middle of the stream too, so that backward rewinds several blocks at once."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.stem(x)
        taps = []
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return self.head(x) + taps[1].mean(-1, keepdim=True)


def build(mode: str, backward: str) -> nn.Module:
    torch.manual_seed(0)
    kind = WithSpare if mode == "ddp_unused" else ResidualMLP
    chain = (TappedChain if mode == "fsdp_block_taps" else Chain)([kind() for _ in range(4)])
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
    net = build(mode, "reversible")
    model = wrapped(net, mode, world)
    x = data().chunk(world)[rank]
    for _ in range(2):  # a second step: static graphs and re-sharded parameters show only then
        model.zero_grad()
        if mode == "ddp_no_sync":
            with model.no_sync():
                loss(model, x).backward()
        loss(model, x).backward()
    return {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in net.named_parameters()
    }


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for mode in modes():
        gradients = gradients_of(mode, rank, world)
        if rank == 0:
            torch.save(gradients, f"{folder}/{mode}.pt")
    dist.destroy_process_group()


def modes() -> list[str]:
    return DDP_MODES + (FSDP_MODES if hasattr(torch.distributed.fsdp, "fully_shard") else [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradients of every mode, from one pair of processes: starting them is most of the time."""
    path = tmp_path_factory.mktemp("gradients")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (2, port, str(path)), nprocs=2)
    return path


@pytest.mark.parametrize("mode", DDP_MODES + FSDP_MODES)
def test_two_processes_give_the_gradients_of_one(mode: str, folder: Path) -> None:
    if mode not in modes():
        pytest.skip("this PyTorch has no FSDP2 (torch.distributed.fsdp.fully_shard)")
    got = torch.load(folder / f"{mode}.pt")
    reference = build(mode, "stored")
    (loss(reference, data()) * (2 if mode == "ddp_no_sync" else 1)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    assert {name for name, grad in got.items() if grad is None} == {n for n, grad in expected.items() if grad is None}
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=2e-5, atol=1e-7)
