"""Processes that talk to each other through gloo, for the tests of distributed training."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2
COUNTS = (2, 4)
# A collective that one process waits for in vain ends after this long, as an error.
PATIENCE = timedelta(seconds=120)
Work = Callable[[int, Path], None]


def run_in_two(work: Work, folder: Path) -> None:
    """Runs ``work(rank, folder)`` in two processes of one group, with one thread each.

    Args:
        work: A function of a module: the processes import it.
        folder: Where they leave what they found.
    """
    run_in(PROCESSES, work, folder)


def run_in(processes: int, work: Work, folder: Path) -> None:
    """The same in as many processes as are asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (processes, work, port, folder), nprocs=processes)


@dataclass(frozen=True)
class Group:
    """Processes that have ended, and the folder with what they found."""

    processes: int
    folder: Path

    def found(self, case: str, rank: int = 0) -> Any:
        return found_by(self.folder, case, rank)


def groups(work: Work, *, counts: tuple[int, ...] = COUNTS, needs: str | None = None, reason: str | None = None) -> Any:
    """A fixture: `work` done by each number of processes. Starting them is most of the time, so once a module.

    Args:
        work: A function of a module: the processes import it.
        counts: The numbers of processes.
        needs: A package without which the tests are skipped.
        reason: How to get it.
    """

    @pytest.fixture(scope="module", params=counts, ids="{}_processes".format)
    def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
        if needs is not None:
            pytest.importorskip(needs, reason=reason)
        path = tmp_path_factory.mktemp("group")
        run_in(request.param, work, path)
        return Group(request.param, path)

    return group


def leave(folder: Path, case: str, found: Any) -> None:
    """Keep what this process has found in a case, for `found_by`."""
    torch.save(found, folder / f"{case}-{dist.get_rank()}.pt")


def found_by(folder: Path, case: str, rank: int = 0) -> Any:
    """What a process has found in a case."""
    return torch.load(folder / f"{case}-{rank}.pt")


def _worker(rank: int, processes: int, work: Work, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes, timeout=PATIENCE)
    work(rank, folder)
    dist.barrier()  # neither process may leave while the other still talks to it
    # All is written. PyTorch's communication threads may outlive the interpreter's end, which aborts now and then:
    # "terminate called without an active exception".
    os._exit(0)
