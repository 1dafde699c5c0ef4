"""A training in several processes, in which a block of the second one computes something else in backward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets


class Forgetful(nets.ResidualMLP):
    """Not deterministic on the second process, from its third step on."""

    calls: list[int] = [0]  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        drift = self.calls[0] if dist.get_rank() == 1 and self.calls[0] > 4 else 0
        return super().forward(x) + 0.01 * drift


def wrapped(net: Any, wrapper: str) -> Any:
    if wrapper == "ddp":
        return DistributedDataParallel(net)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.blocks:  # whose recompute gathers its parameters, for which the other process waits
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def main(begun: Path, wrapper: str) -> None:
    dist.init_process_group("gloo")
    net = nets.chain()
    net.blocks[2] = Forgetful()
    model = wrapped(nets.converted(net), wrapper)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1000):
        begun.touch()
        optimizer.zero_grad()
        nets.loss(model, nets.data()).backward()
        optimizer.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
