"""Two processes that train with DistributedDataParallel find the ticket of one, with one folder for both."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from momentumnet.prune import LotteryTicket, TrainingLog
from tests.prune.lotteries import STEPS, X, Y, network


def steps(called: nn.Module, trained: nn.Module, log: TrainingLog, part: slice) -> float:
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    for _ in range(log.start_step, STEPS):
        optimizer.zero_grad()
        (called(X[part]) - Y[part]).square().mean().backward()
        optimizer.step()
        log.step()
    with torch.no_grad():
        return -float((trained(X) - Y).square().mean())


def lottery(folder: Path, world: int, rank: int, rounds: int) -> LotteryTicket:
    part = slice(rank * len(X) // world, (rank + 1) * len(X) // world)

    def train(model: nn.Module, log: TrainingLog) -> float:
        return steps(DistributedDataParallel(model) if world > 1 else model, model, log, part)

    return LotteryTicket(
        network(), train, fraction=0.3, rounds=rounds, rewind_to=1, controls=["random mask"], folder=folder
    )


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    shared = Path(folder, "shared")
    lottery(shared, world, rank, rounds=1).run()
    found = lottery(shared, world, rank, rounds=2)  # goes on after the first round
    report = found.run()
    accuracies = [training.final for training in report.trainings]
    torch.save((accuracies, found.masks(2), found.ticket(2).state_dict()), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_find_the_ticket_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(2, port, str(tmp_path)), nprocs=2)
    alone = lottery(tmp_path / "alone", 1, 0, rounds=2)
    expected = [training.final for training in alone.run().trainings]
    for rank in range(2):
        accuracies, masks, weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(accuracies, expected, rtol=1e-10, atol=0)
        assert all(torch.equal(mask, masks[name]) for name, mask in alone.masks(2).items())
        for name, tensor in alone.ticket(2).state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-10, atol=1e-12)
    assert not list((tmp_path / "shared").glob("*.partial"))
