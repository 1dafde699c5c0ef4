"""FSDP2 (`fully_shard`) on two and on four processes gives the gradients of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import momentumnet as mn
from momentumnet.errors import ConversionError
from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss, own
from tests.models import WIDTH, Chain
from tests.processes import Group, groups, leave

Found = dict[str, "Tensor | None"]
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def sharded(net: Any, *, blocks: bool, **options: Any) -> Any:
    """The network with its parameters in shards; of each block by itself, or all together."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.blocks if blocks else ():
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def steps(net: nn.Module, x: Tensor, count: int = 2) -> Found:
    """Gradients of a second step: parameters that were sharded again show only then."""
    for _ in range(count):
        net.zero_grad()
        loss(net, x).backward()
    return gradients(net)


def plain(x: Tensor, parent: type[Chain] = Chain, **options: Any) -> Found:
    return steps(sharded(converted(chain(parent=parent)), **options), x)


def checkpointed(x: Tensor) -> Found:
    """Between forward and backward, whoever is outside of the blocks lets go of their parameters' memory."""
    return steps(sharded(converted(chain(), "checkpointed"), blocks=False, reshard_after_forward=True), x)


def sharded_first(x: Tensor) -> Found:
    net = sharded(chain(), blocks=True)
    with pytest.raises(ConversionError, match=r"\(FSDPChain\) is sharded by fully_shard already.*convert first"):
        converted(net)
    with pytest.raises(ConversionError, match=r"\(FSDPChain\) is sharded by fully_shard already.*inplace=True"):
        mn.convert(net, streams=["blocks"])
    return steps(mn.convert(net, streams=["blocks"], gamma=nets.GAMMA, inplace=True), x)


def frozen_ones(net: Chain) -> Chain:
    for module in (net.stem, net.blocks[1], net.blocks[3].inner[0]):
        module.requires_grad_(False)
    return net


def frozen(x: Tensor) -> Found:
    return steps(sharded(converted(frozen_ones(chain())), blocks=True), x)


class Product(nn.Module):
    """Its weight is saved as it is, and not as a view."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.unsqueeze(1) * self.weight).mean(1)


class Small(nn.Module):
    """A product behind a norm, and something behind it that asks for the recompute first."""

    rows = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), Product(self.rows)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(self.norm(x)))


class Large(Small):
    """More than 256 KiB, which are compared by themselves."""

    rows = 8192


def frozen_inside(net: Chain) -> Chain:
    for block in net.blocks:
        block.inner.requires_grad_(False)
    return net


def inside(x: Tensor, net: Chain, *, blocks: bool = False) -> Found:
    """What blocks hold is sharded by itself: its parameters come when it runs, and go before the block has run."""
    net = converted(net)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in net.blocks:
        fully_shard(block.inner, mesh=mesh, reshard_after_forward=True)
    return steps(sharded(net, blocks=blocks), x)


def norm_over_processes(x: Tensor) -> Found:
    return steps(sharded(converted(chain(nets.NormOverProcesses)), blocks=True), x)


def half_blocks(x: Tensor) -> Found:
    """Sharded blocks add up the gradients of their inputs in another order, as stored ones do: in bfloat16 it shows."""
    found = plain(x, blocks=True, mp_policy=HALF)
    stored = steps(sharded(converted(chain(), "stored"), blocks=True, mp_policy=HALF), x)
    nets.assert_same(found, stored, 0)
    return found


CASES: dict[str, Callable[[Tensor], Found]] = {
    "root": lambda x: plain(x, blocks=False),
    "root_resharded": lambda x: plain(x, blocks=False, reshard_after_forward=True),
    "checkpointed": checkpointed,
    "blocks": lambda x: plain(x, blocks=True, reshard_after_forward=True),
    "blocks_kept": lambda x: plain(x, blocks=True, reshard_after_forward=False),
    "sharded_first": sharded_first,
    "taps": lambda x: plain(x, nets.TappedChain, blocks=True),
    "early": lambda x: plain(x, nets.EarlyChain, blocks=True),
    "frozen": frozen,
    "inside": lambda x: inside(x, chain()),
    "inside_of_blocks": lambda x: inside(x, chain(Large), blocks=True),
    "inside_frozen": lambda x: inside(x, frozen_inside(chain(Small))),
    "inside_frozen_large": lambda x: inside(x, frozen_inside(chain(Large))),
    "norm": norm_over_processes,
    "offload": lambda x: plain(x, blocks=True, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "half_root": lambda x: plain(x, blocks=False, mp_policy=HALF),
    "half_blocks": half_blocks,
}


# Of blocks, where they are others than a `ResidualMLP`.
KINDS: dict[str, type[nn.Module]] = {
    "norm": nets.NormOverProcesses,
    "inside_frozen": Small,
    "inside_of_blocks": Large,
    "inside_frozen_large": Large,
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(own(data())))


group = groups(work)


def of_one(case: str, processes: int) -> Found:
    if case.startswith("half"):
        return of_one_in_half(processes)
    parent = {"taps": nets.TappedChain, "early": nets.EarlyChain}.get(case, Chain)
    net = chain(KINDS.get(case, nets.ResidualMLP), parent)
    if case == "frozen":
        net = frozen_ones(net)
    elif case.startswith("inside_frozen"):
        net = frozen_inside(net)
    return steps(converted(net, "stored"), data())


def of_one_in_half(processes: int) -> Found:
    """All parts of the batch on parameters in bfloat16, their gradients added in float32."""
    net = converted(chain(), "stored")
    parts = []
    for part in data().chunk(processes):
        half = copy.deepcopy(net).to(torch.bfloat16)
        loss(half, part.to(torch.bfloat16)).backward()
        parts.append(gradients(half))
    return {name: sum(part[name].float() for part in parts) / processes for name in parts[0]}  # type: ignore[union-attr]


@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_gradients_of_one(case: str, group: Group) -> None:
    tolerance = 2e-2 if case == "half_blocks" else nets.TOLERANCE
    nets.assert_same(group.found(case), of_one(case, group.processes), tolerance)
