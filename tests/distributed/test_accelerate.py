"""accelerate on two and on four processes: accumulation, clipped gradients and a saved state, as one does it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import momentumnet as mn
from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, own
from tests.processes import Group, groups, leave

pytest.importorskip("accelerate", reason="pip install 'momentumnet[hf]'")

ACCUMULATION = 2
STEPS = 3
LARGEST = 0.05  # norm of a gradient; all are above it


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def batches() -> list[Tensor]:
    """One for each micro-step, the same in all processes."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(data().shape, generator=generator) for _ in range(STEPS * ACCUMULATION)]


def accelerator() -> Any:
    from accelerate import Accelerator

    rank, processes = str(dist.get_rank()), str(dist.get_world_size())
    # As torchrun sets them. The group is there already, so that nobody looks for the address.
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    return Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)


def train(accelerate: Any, model: Any, steps: Any, micro_steps: list[Tensor]) -> None:
    for x in micro_steps:
        with accelerate.accumulate(model):
            accelerate.backward(model(own(x)).square().mean())
            if accelerate.sync_gradients:
                accelerate.clip_grad_norm_(model.parameters(), LARGEST)
            steps.step()
            steps.zero_grad()


def sharded() -> dict[str, Tensor | None]:
    """Gradients of a network whose blocks accelerate has sharded by FSDP2.

    It offers that on accelerators alone, and only its choice of a kind asks for one, so that it is chosen here.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerate, net = accelerator(), converted(chain())
    accelerate.state.distributed_type = DistributedType.FSDP
    accelerate.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[type(net.blocks[0]).__name__],
    )
    model, _ = accelerate.prepare(net, optimizer(net))
    assert all(isinstance(block, FSDPModule) for block in model.blocks)
    for _ in range(2):  # parameters that were sharded again show in a second step
        model.zero_grad()
        accelerate.backward(model(own(data())).square().mean() * ACCUMULATION)  # it divides by their number
    return nets.gradients(model)


def work(rank: int, folder: Path) -> None:
    accelerate = accelerator()
    assert accelerate.num_processes == dist.get_world_size()
    model, steps = accelerate.prepare(net := converted(chain()), optimizer(net))
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    first = ACCUMULATION * (STEPS - 1)
    train(accelerate, model, steps, batches()[:first])
    accelerate.save_state(str(folder / "state"))
    train(accelerate, model, steps, batches()[first:])
    unwrapped = accelerate.unwrap_model(model)
    assert mn.describe(unwrapped) == mn.describe(converted(chain()))
    leave(folder, "trained", {name: value.detach().clone() for name, value in unwrapped.named_parameters()})
    accelerate.load_state(str(folder / "state"))
    train(accelerate, model, steps, batches()[first:])
    leave(folder, "resumed", {name: value.detach().clone() for name, value in unwrapped.named_parameters()})
    leave(folder, "sharded", sharded())


group = groups(work)


def of_one() -> dict[str, Tensor]:
    """The parameters that one process trains on whole batches, with stored activations."""
    net = converted(chain(), "stored")
    steps = optimizer(net)
    for number, x in enumerate(batches(), start=1):
        (net(x).square().mean() / ACCUMULATION).backward()
        if number % ACCUMULATION == 0:
            assert nn.utils.clip_grad_norm_(net.parameters(), LARGEST) > LARGEST
            steps.step()
            steps.zero_grad()
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.parametrize("case", ["trained", "resumed"])
def test_processes_train_as_one(case: str, group: Group) -> None:
    expected = of_one()
    assert all(not torch.equal(value, expected[name]) for name, value in chain().named_parameters())
    for rank in range(group.processes):
        nets.assert_same(group.found(case, rank), expected, nets.TOLERANCE)


def test_what_accelerate_shards_has_the_gradients_of_one_process(group: Group) -> None:
    net = converted(chain(), "stored")
    nets.loss(net, data()).backward()
    for rank in range(group.processes):
        nets.assert_same(group.found("sharded", rank), nets.gradients(net), nets.TOLERANCE)
