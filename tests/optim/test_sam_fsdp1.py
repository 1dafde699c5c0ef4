"""SAM on parameters of which each of two processes holds a part in plain tensors (FSDP1): as one process does it."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.optim import SGD

import momentumnet as mn
from momentumnet.optim import SAM, Extragradient
from tests.models import WIDTH, Chain, ResidualMLP
from tests.optim.nets import closure_of, sam_gradient
from tests.processes import Group, groups, leave

STEPS, RHO, LR = 2, 0.3, 0.5
CASES: dict[str, dict[str, Any]] = {
    "flat": {"use_orig_params": False},
    "whole": {"use_orig_params": True},
    "blocks": {"use_orig_params": True, "auto_wrap_policy": ModuleWrapPolicy({ResidualMLP})},
    "converted": {"use_orig_params": True, "auto_wrap_policy": ModuleWrapPolicy({ResidualMLP})},
    "not_divided": {"use_orig_params": True, "sharding_strategy": ShardingStrategy.NO_SHARD},
    "extragradient": {"use_orig_params": True},
    "added": {"use_orig_params": True},
    "added_to_the_base": {"use_orig_params": True},
}


def build(case: str) -> nn.Module:
    torch.manual_seed(0)
    net = Chain([ResidualMLP() for _ in range(3)]).double()
    return mn.convert(net, data(), streams=["blocks"], backward="reversible") if case == "converted" else net


def data() -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


wrapped = partial(FullyShardedDataParallel, device_id=torch.device("cpu"))


def moved(case: str, x: Tensor) -> dict[str, Tensor]:
    model = wrapped(build(case), **CASES[case])
    kind = Extragradient if case == "extragradient" else partial(SAM, rho=RHO)
    if case.startswith("added"):  # to an optimizer of parameters that are whole
        optimizer = kind([nn.Parameter(torch.ones(()))], SGD, model=model, lr=LR)
        optimizer.first_step()  # nothing has a gradient
        optimizer.restore()
        by = optimizer if case == "added" else optimizer.base_optimizer
        by.add_param_group({"params": list(model.parameters())})
    else:
        optimizer = kind(model.parameters(), SGD, model=model, lr=LR)
    for _ in range(STEPS):
        optimizer.step(closure_of(optimizer, lambda: loss(model, x)))
    with FullyShardedDataParallel.summon_full_params(model):
        return {n.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for n, p in model.named_parameters()}


def walks() -> int:
    """How often the model is searched for its parts, in all steps of an optimizer that has been made."""
    model = wrapped(build("blocks"), **CASES["blocks"])
    optimizer = SAM(model.parameters(), SGD, model=model, lr=LR)
    search = FullyShardedDataParallel.fsdp_modules
    with patch.object(FullyShardedDataParallel, "fsdp_modules", side_effect=search) as searches:
        for _ in range(STEPS):
            optimizer.step(closure_of(optimizer, lambda: loss(model, data())))
    return searches.call_count


def refused() -> list[str]:
    model = build("whole")
    model.head = wrapped(model.head, sharding_strategy=ShardingStrategy.NO_SHARD, use_orig_params=True)
    mixed, found = wrapped(model, use_orig_params=True), []
    for known in (None, mixed):
        with pytest.raises(ValueError, match="FullyShardedDataParallel") as error:
            SAM(mixed.parameters(), SGD, model=known, lr=LR)
        found.append(str(error.value))
    return found


def work(rank: int, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and has something to say of the CPU
        for case in CASES:
            leave(folder, case, moved(case, data().chunk(2)[rank]))
        leave(folder, "refused", refused())
        leave(folder, "walks", walks())


group = groups(work, counts=(2,))


@pytest.mark.parametrize("case", CASES)
def test_parts_move_as_the_whole(case: str, group: Group) -> None:
    net, x = build(case), data()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    parameters = list(net.parameters())
    for _ in range(STEPS):
        if case == "extragradient":
            optimizer = Extragradient(parameters, SGD, lr=LR)
            optimizer.step(closure_of(optimizer, lambda: loss(net, x)))
            continue
        gradients = sam_gradient(parameters, lambda: loss(net, x), [RHO] * len(parameters))
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= LR * gradient
    for name, parameter in net.named_parameters():
        change = (parameter - start[name]).norm()
        assert (group.found(case)[name] - parameter).norm() <= 1e-9 * change, name


def test_the_processes_are_looked_for_once(group: Group) -> None:
    """A walk over all modules."""
    assert group.found("walks") == 0


def test_what_is_not_known_is_said(group: Group) -> None:
    without, mixed = group.found("refused")
    assert "needs model=, that module" in without
    assert "in several ways: take one for all" in mixed
