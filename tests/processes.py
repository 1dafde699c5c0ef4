"""Two processes that talk to each other through gloo, for the tests of distributed training."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES = 2
Work = Callable[[int, Path], None]


def run_in_two(work: Work, folder: Path) -> None:
    """Runs ``work(rank, folder)`` in two processes of one group, with one thread each.

    Args:
        work: A function of a module: the processes import it.
        folder: Where they leave what they found.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (work, port, folder), nprocs=PROCESSES)


def _worker(rank: int, work: Work, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    work(rank, folder)
    dist.barrier()  # neither process may leave while the other still talks to it
    # All is written. PyTorch's communication threads may outlive the interpreter's end, which aborts now and then:
    # "terminate called without an active exception".
    os._exit(0)
