"""Checkpoints of `torch.distributed.checkpoint`: state by the names of parameters, loaded into a new optimizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import SGD, AdamW, Optimizer

from momentumnet.optim import SAM, Extragradient
from momentumnet.optim.two_step import TwoStepOptimizer
from tests.optim.nets import batch, closure_of, loss_of, network, values
from tests.processes import groups

KINDS = {
    "adamw": partial(SAM, base_optimizer=AdamW, rho=0.3, lr=0.1),
    "momentum": partial(SAM, base_optimizer=SGD, rho=0.3, adaptive=True, lr=0.1, momentum=0.9),
    "extragradient": partial(Extragradient, base_optimizer=AdamW, lr=0.1),
}


def train(net: nn.Module, optimizer: TwoStepOptimizer, steps: int) -> None:
    x, y = batch()
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))


def saved(net: nn.Module, optimizer: Optimizer, flat: bool) -> dict[str, Any]:
    model, state = get_state_dict(net, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))
    return {"model": model, "optimizer": state}


def loaded(net: nn.Module, optimizer: Optimizer, folder: Path, flat: bool) -> None:
    found = saved(net, optimizer, flat)
    dcp.load(found, checkpoint_id=folder)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    set_state_dict(
        net, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"], options=options
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_optimizer_goes_on_with_the_same_bits(kind: str, flat: bool, tmp_path: Path) -> None:
    net = network()
    optimizer = KINDS[kind](net.parameters())
    train(net, optimizer, 2)
    dcp.save(saved(net, optimizer, flat), checkpoint_id=tmp_path)
    train(net, optimizer, 2)

    resumed = network()
    other = KINDS[kind](resumed.parameters())
    before = values(resumed)
    saved(resumed, other, flat)
    assert all(map(torch.equal, values(resumed), before))
    loaded(resumed, other, tmp_path, flat)
    assert [group["lr"] for group in other.param_groups] == [0.1]
    train(resumed, other, 2)
    assert all(map(torch.equal, values(resumed), values(net)))


@pytest.mark.parametrize(("rate", "gradient"), [(0.0, 1.0), (0.1, 0.0), (0.0, None), (torch.tensor(0.1), 0.0)])
def test_any_other_step_needs_a_closure(rate: Any, gradient: float | None) -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = None if gradient is None else torch.full((2,), gradient)
    optimizer = SAM([weight], SGD, lr=rate)
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()


def test_so_does_one_whose_optimizer_chooses_its_rate() -> None:
    """As Adafactor does: its ``lr`` is None."""
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = SAM([weight], SGD, lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()


def test_a_state_is_begun_once() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.zeros(2)
    optimizer = SAM([weight], SGD, lr=torch.tensor(0.0), momentum=0.9)
    optimizer.step()
    assert optimizer.state[weight]
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()


def sharded(net: nn.Module) -> TwoStepOptimizer:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(net, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return KINDS["adamw"](net.parameters())


def work(rank: int, folder: Path) -> None:
    net = network()
    optimizer = sharded(net)
    train(net, optimizer, 2)
    dcp.save(saved(net, optimizer, False), checkpoint_id=folder / "checkpoint")
    resumed = network()
    other = sharded(resumed)
    loaded(resumed, other, folder / "checkpoint", False)
    train(net, optimizer, 2)
    train(resumed, other, 2)
    pairs = zip(net.parameters(), resumed.parameters(), strict=True)
    if not all(torch.equal(p.full_tensor(), q.full_tensor()) for p, q in pairs):
        raise AssertionError("resumed otherwise")
    if rank == 0:
        torch.save([p.full_tensor() for p in net.parameters()], folder / "values.pt")
    else:
        [p.full_tensor() for p in net.parameters()]


group = groups(work, counts=(2,))


def test_sharded_state_is_loaded_by_one_process(group: Any) -> None:
    net = network()
    optimizer = KINDS["adamw"](net.parameters())
    loaded(net, optimizer, group.folder / "checkpoint", False)
    train(net, optimizer, 2)
    for value, expected in zip(values(net), torch.load(group.folder / "values.pt"), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
