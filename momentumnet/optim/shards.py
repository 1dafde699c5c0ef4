"""The norm over parameters of which each process of a `FullyShardedDataParallel` (FSDP1) holds a part.

FSDP2's are DTensors, which know it themselves. FSDP1's are plain tensors: the part of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from momentumnet.optim.displacement import Displacement, total_norm


def sharing_processes(model: nn.Module | None) -> dist.ProcessGroup | None:
    """Those among which FSDP1 has divided the model's parameters; None where each process holds all of them.

    A walk over all modules.

    Raises:
        ValueError: the model that FSDP1 has wrapped is not known, or its parts are divided in several ways.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel  # slow to import

    wrapped = [] if model is None else FullyShardedDataParallel.fsdp_modules(model)
    handles = [module._handle for module in wrapped if module._handle is not None]  # no public way
    if not handles:
        raise ValueError(
            "each process holds a part of the parameters of a FullyShardedDataParallel, and the norm is taken over "
            "all: it needs model=, that module"
        )
    groups = {handle.process_group if handle.uses_sharded_strategy else None for handle in handles}
    if len(groups) > 1:
        raise ValueError("FullyShardedDataParallel has divided parts of the model in several ways: take one for all")
    return groups.pop()


def total_norm_over(
    group: dist.ProcessGroup | None, moves: Sequence[Displacement], norms: Callable[[Displacement], Sequence[Tensor]]
) -> float:
    """The 2-norm over all points of the moves, and over the processes of the group. Read back from the device.

    Args:
        group: what `sharing_processes` gave.
        moves: they.
        norms: gives that of each point of a move.
    """
    found = [(norm, divided) for move in moves for norm, divided in zip(norms(move), move.flattened, strict=True)]
    if group is None:
        return total_norm([norm for norm, _ in found])
    parts, whole = (total_norm([norm for norm, divided in found if divided is kind]) for kind in (True, False))
    backend = dist.get_backend(group)
    squares = torch.tensor(parts**2, dtype=torch.float64, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(squares, group=group)
    return math.sqrt(float(squares) + whole**2)
