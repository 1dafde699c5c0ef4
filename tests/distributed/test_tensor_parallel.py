"""Tensor parallel blocks (`parallelize_module`) on two and on four processes give the gradients of one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tests.distributed import nets
from tests.distributed.nets import converted, data, gradients, loss
from tests.models import WIDTH
from tests.processes import Group, groups, leave

Found = dict[str, "Tensor | None"]
TOKENS = (4, 8, WIDTH)


class NormedMLP(nn.Module):
    """x + W2 tanh(W1 norm(x)), as in a transformer before attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    """Blocks between a stem and a head."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([NormedMLP() for _ in range(blocks)])
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net(backward: str = "reversible") -> Any:
    torch.manual_seed(0)
    return converted(Stack(), backward, data(TOKENS))


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def columns_and_rows(network: Any) -> Any:
    """The stream is whole in each process, plain tensors; blocks add up their output over the processes."""
    for block in network.blocks:
        parallelize_module(block, mesh(), {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return network


def plain(x: Tensor) -> Found:
    return steps(columns_and_rows(net()), x)


def parallel_first(x: Tensor) -> Found:
    torch.manual_seed(0)
    return steps(converted(columns_and_rows(Stack()), example=data(TOKENS)), x)


def in_sequence(network: Any, *, local: bool) -> Any:
    """Between the stem and the head each process has a part of the tokens: plain tensors, or DTensors.

    Norms work on that part; the products gather all tokens and scatter their sum.
    """
    layouts = {
        "norm": SequenceParallel(),
        "up": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
    }
    for block in network.blocks:
        parallelize_module(block, mesh(), layouts)
        parallelize_module(
            block,
            mesh(),
            {"up": ColwiseParallel(), "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=local)},
        )
    outside = {
        "stem": ColwiseParallel(output_layouts=Shard(1), use_local_output=local),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(network, mesh(), outside)


def sharded_stream(x: Tensor) -> Found:
    return steps(in_sequence(net(), local=True), x)


def dtensor_stream(x: Tensor) -> Found:
    network = in_sequence(net(), local=False)
    seen: list[type] = []
    network.blocks[1].register_forward_pre_hook(lambda block, args: seen.append(type(args[0])))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("momentumnet").addHandler(handler)
    found = steps(network, x)
    assert seen == [DTensor] * 2
    assert any("a tensor of class DTensor" in line and "saves no memory" in line for line in lines)
    return found


def steps(network: nn.Module, x: Tensor) -> Found:
    for _ in range(2):
        network.zero_grad()
        loss(network, x).backward()
    return gradients(network)


CASES: dict[str, Callable[[Tensor], Found]] = {
    "plain": plain,
    "parallel_first": parallel_first,
    "sharded_stream": sharded_stream,
    "dtensor_stream": dtensor_stream,
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(data(TOKENS)))


group = groups(work)


@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_gradients_of_one(case: str, group: Group) -> None:
    for rank in range(group.processes):
        nets.assert_same(group.found(case, rank), steps(net("stored"), data(TOKENS)), nets.TOLERANCE)
