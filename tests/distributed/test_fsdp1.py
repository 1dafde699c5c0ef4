"""FSDP1 (`FullyShardedDataParallel`) on two processes moves parameters as one process does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.optim import SGD

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, loss, own
from tests.models import ResidualMLP
from tests.processes import Group, groups, leave

Moved = dict[str, Tensor]
BLOCKS = {"auto_wrap_policy": ModuleWrapPolicy({ResidualMLP})}


def train(model: nn.Module, x: Tensor) -> None:
    """Two steps of two forwards each: parameters that were sharded again show in a second one."""
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (loss(model, x) + loss(model, 2 * x)).backward()
        optimizer.step()


def moved(model: nn.Module) -> Moved:
    start = dict(chain().named_parameters())
    found = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in model.named_parameters()}
    return {name: value.detach() - start[name].detach() for name, value in found.items()}


def frozen(net: Any) -> Any:
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("norm" in name or "stem" in name)
    return net


def sharded(
    x: Tensor, backward: str = "reversible", only: Callable[[Any], Any] = lambda net: net, **options: Any
) -> Moved:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it is deprecated, and has something to say of the CPU and of frozen parameters
        model = FullyShardedDataParallel(only(converted(chain(), backward)), device_id=torch.device("cpu"), **options)
        train(model, x)
        with FullyShardedDataParallel.summon_full_params(model):
            return moved(model)


CASES: dict[str, Callable[[Tensor], Moved]] = {
    "flat": partial(sharded, use_orig_params=False),
    "flat_blocks": partial(sharded, use_orig_params=False, **BLOCKS),
    "whole": partial(sharded, use_orig_params=True),
    "blocks": partial(sharded, use_orig_params=True, **BLOCKS),
    "checkpointed": partial(sharded, backward="checkpointed", use_orig_params=True, **BLOCKS),
    "gradients_alone": partial(sharded, use_orig_params=True, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP),
    "frozen": partial(sharded, only=frozen, use_orig_params=True, **BLOCKS),
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(own(data())))


group = groups(work, counts=(2,))


@pytest.mark.parametrize("case", CASES)
def test_processes_train_as_one(case: str, group: Group) -> None:
    net = converted(chain(), "stored")
    train(frozen(net) if case == "frozen" else net, data())
    for rank in range(group.processes):
        nets.assert_same(group.found(case, rank), moved(net), 1e-5)
