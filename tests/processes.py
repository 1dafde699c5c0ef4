"""Processes that talk to each other through gloo, for the tests of distributed training."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2
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
