"""Four processes as a mesh of two by two: shards that are replicated, and shards of parallel blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss, own
from tests.processes import Group, groups, leave

Found = dict[str, "Tensor | None"]


def steps(net: nn.Module, x: Tensor) -> Found:
    for _ in range(2):
        net.zero_grad()
        loss(net, x).backward()
    return gradients(net)


def sharded(net: Any, mesh: Any) -> Any:
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def hybrid(rank: int) -> Found:
    """Shards over two, which two pairs replicate."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net = sharded(converted(chain()), mesh)
    return steps(net, own(data()))


def sharded_and_parallel(rank: int) -> Found:
    """Blocks are parallel over pairs, and each part of a weight is sharded over two."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    net = converted(chain())
    for block in net.blocks:
        parallelize_module(block, mesh["tensor"], {"inner.0": ColwiseParallel(), "inner.2": RowwiseParallel()})
    net = sharded(net, mesh["data"])
    return steps(net, data().chunk(2)[rank // 2])


CASES: dict[str, Callable[[int], Found]] = {
    "hybrid": hybrid,
    "sharded_and_parallel": sharded_and_parallel,
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(rank))


group = groups(work, counts=(4,))


@pytest.mark.parametrize("case", CASES)
def test_four_processes_give_the_gradients_of_one(case: str, group: Group) -> None:
    net = converted(chain(), "stored")
    nets.assert_same(group.found(case), steps(net, data()), nets.TOLERANCE)
