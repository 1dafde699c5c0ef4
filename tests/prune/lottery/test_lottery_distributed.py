"""Two processes that train with DistributedDataParallel find the ticket of one, with one folder for both."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from momentumnet.prune import LotteryTicket, TrainingLog
from tests.processes import PROCESSES, run_in_two
from tests.prune.lottery.lotteries import STEPS, X, Y, network


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


def worker(rank: int, folder: Path) -> None:
    shared = Path(folder, "shared")
    lottery(shared, PROCESSES, rank, rounds=1).run()
    found = lottery(shared, PROCESSES, rank, rounds=2)  # goes on after the first round
    report = found.run()
    accuracies = [training.final for training in report.trainings]
    torch.save((accuracies, found.masks(2), found.ticket(2).state_dict()), Path(folder, f"{rank}.pt"))


def test_two_processes_find_the_ticket_of_one(tmp_path: Path) -> None:
    run_in_two(worker, tmp_path)
    alone = lottery(tmp_path / "alone", 1, 0, rounds=2)
    expected = [training.final for training in alone.run().trainings]
    for rank in range(2):
        accuracies, masks, weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(accuracies, expected, rtol=1e-10, atol=0)
        assert all(torch.equal(mask, masks[name]) for name, mask in alone.masks(2).items())
        for name, tensor in alone.ticket(2).state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-10, atol=1e-12)
    assert not list((tmp_path / "shared").glob("*.partial"))
