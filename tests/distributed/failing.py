"""A training in two processes, in which a block of the second one computes something else in backward."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets


class Forgetful(nets.ResidualMLP):
    """Not deterministic on the second process, from its third step on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        drift = self.calls if dist.get_rank() == 1 and self.calls > 4 else 0
        return super().forward(x) + 0.01 * drift


def main(begun: Path) -> None:
    dist.init_process_group("gloo")
    net = nets.chain()
    net.blocks[2] = Forgetful()
    model = DistributedDataParallel(nets.converted(net))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1000):
        begun.touch()
        optimizer.zero_grad()
        nets.loss(model, nets.data()).backward()
        optimizer.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
