"""DistributedDataParallel on two and on four processes gives the gradients of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms import Join
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from momentumnet.errors import ConversionError
from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss, own
from tests.models import ResidualMLP
from tests.processes import Group, groups, leave

Found = dict[str, "Tensor | None"]


def steps(net: nn.Module, model: nn.Module, x: Tensor, count: int = 2) -> Found:
    """Gradients of the last of some steps, and buffers: static graphs and broadcasts show in a second step only."""
    for _ in range(count):
        model.zero_grad()
        loss(model, x).backward()
    return gradients(net) | dict(net.named_buffers())


def wrapped_first(x: Tensor) -> Found:
    """Is refused, and left as it was: its next step is an ordinary one."""
    net = chain()
    model = DistributedDataParallel(net)
    with pytest.raises(ConversionError, match=r"wrapped in DistributedDataParallel already.*convert first"):
        converted(model)
    return steps(mn.convert(net, data(), gamma=nets.GAMMA, inplace=True), model, x)


def plain(x: Tensor, **options: bool) -> Found:
    net = converted(chain())
    return steps(net, DistributedDataParallel(net, **options), x)


def unused(x: Tensor) -> Found:
    net = converted(chain(nets.Spare))
    return steps(net, DistributedDataParallel(net, find_unused_parameters=True), x)


def accumulated(x: Tensor) -> Found:
    net = converted(chain())
    model = DistributedDataParallel(net)
    for _ in range(2):
        model.zero_grad()
        with model.no_sync():
            loss(model, x).backward()
        loss(model, x.flip(1)).backward()
    return gradients(net)


def norm_over_processes(x: Tensor) -> Found:
    net = converted(chain(nets.NormOverProcesses))
    return steps(net, DistributedDataParallel(net), x)


def broadcast(x: Tensor) -> Found:
    net = converted(chain(nets.Shifted))
    return steps(net, DistributedDataParallel(net), x)


def uneven(x: Tensor) -> Found:
    """The first process has a batch more: the others join in with zeros."""
    net = converted(chain())
    model = DistributedDataParallel(net)
    with Join([model]):
        for _ in range(2 if torch.distributed.get_rank() == 0 else 1):
            model.zero_grad()
            loss(model, x).backward()
    return gradients(net)


CASES: dict[str, Callable[[Tensor], Found]] = {
    "plain": plain,
    "static_graph": lambda x: plain(x, static_graph=True),
    "bucket_view": lambda x: plain(x, gradient_as_bucket_view=True),
    "unused": unused,
    "no_sync": accumulated,
    "norm": norm_over_processes,
    "broadcast": broadcast,
    "join": uneven,
    "wrapped_first": wrapped_first,
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(own(data())))


group = groups(work)


def of_one(case: str, rank: int, processes: int) -> Found:
    kind = {"unused": nets.Spare, "norm": nets.NormOverProcesses, "broadcast": nets.Shifted}.get(case, ResidualMLP)
    net = converted(chain(kind), "stored")
    if case == "no_sync":
        (loss(net, data()) + loss(net, data().flip(1))).backward()
        return gradients(net)
    if case == "join":
        part = data() if rank else data().chunk(processes)[0]
        (loss(net, part) / (1 if rank else processes)).backward()
        return gradients(net)
    return steps(net, net, data())


@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_gradients_of_one(case: str, group: Group) -> None:
    for rank in range(group.processes):
        nets.assert_same(group.found(case, rank), of_one(case, rank, group.processes), nets.TOLERANCE)
