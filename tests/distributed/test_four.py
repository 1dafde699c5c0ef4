"""Four processes, in one group and as a mesh of two by two, give the gradients of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss
from tests.processes import found_by, leave, run_in

PROCESSES = 4
Found = dict[str, "Tensor | None"]


def steps(net: nn.Module, model: nn.Module, x: Tensor) -> Found:
    for _ in range(2):
        model.zero_grad()
        loss(model, x).backward()
    return gradients(net)


def replicated(rank: int) -> Found:
    net = converted(chain())
    return steps(net, DistributedDataParallel(net), data().chunk(PROCESSES)[rank])


def sharded(net: Any, mesh: Any) -> Any:
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def hybrid(rank: int) -> Found:
    """Shards over two, which two pairs replicate."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net = sharded(converted(chain()), mesh)
    return steps(net, net, data().chunk(PROCESSES)[rank])


def sharded_and_parallel(rank: int) -> Found:
    """Blocks are parallel over pairs, and each part of a weight is sharded over two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    net = converted(chain())
    for block in net.blocks:
        parallelize_module(block, mesh["tensor"], {"inner.0": ColwiseParallel(), "inner.2": RowwiseParallel()})
    net = sharded(net, mesh["data"])
    return steps(net, net, data().chunk(2)[rank // 2])


CASES: dict[str, Callable[[int], Found]] = {
    "replicated": replicated,
    "hybrid": hybrid,
    "sharded_and_parallel": sharded_and_parallel,
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(rank))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("four")
    run_in(PROCESSES, work, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_four_processes_give_the_gradients_of_one(case: str, folder: Path) -> None:
    net = converted(chain(), "stored")
    nets.assert_same(found_by(folder, case), steps(net, net, data()), nets.TOLERANCE)
