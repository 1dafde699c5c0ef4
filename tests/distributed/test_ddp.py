"""DistributedDataParallel on two processes gives the gradients of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms import Join
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import nets
from tests.distributed.nets import chain, converted, data, gradients, loss
from tests.models import ResidualMLP
from tests.processes import PROCESSES, found_by, leave, run_in_two

Found = dict[str, "Tensor | None"]


def steps(net: nn.Module, model: nn.Module, x: Tensor, count: int = 2) -> Found:
    """Gradients of the last of some steps, and buffers: static graphs and broadcasts show in a second step only."""
    for _ in range(count):
        model.zero_grad()
        loss(model, x).backward()
    return gradients(net) | dict(net.named_buffers())


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
    """The first process has a batch more: the second one joins in with zeros."""
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
}


def work(rank: int, folder: Path) -> None:
    for name, case in CASES.items():
        leave(folder, name, case(data().chunk(PROCESSES)[rank]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case has found, from one pair of processes: starting them is most of the time."""
    path = tmp_path_factory.mktemp("ddp")
    run_in_two(work, path)
    return path


def of_one(case: str, rank: int) -> Found:
    kind = {"unused": nets.Spare, "norm": nets.NormOverProcesses, "broadcast": nets.Shifted}.get(case, ResidualMLP)
    net = converted(chain(kind), "stored")
    if case == "no_sync":
        (loss(net, data()) + loss(net, data().flip(1))).backward()
        return gradients(net)
    if case == "join":
        own = data() if rank else data().chunk(PROCESSES)[0]
        (loss(net, own) / (1 if rank else PROCESSES)).backward()
        return gradients(net)
    return steps(net, net, data())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_gradients_of_one(case: str, folder: Path) -> None:
    for rank in range(PROCESSES):
        nets.assert_same(found_by(folder, case, rank), of_one(case, rank), nets.TOLERANCE)
