"""The processes of one training that torchrun has started: each takes its part of each batch, the first one writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from momentumnet.command_errors import UsageError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among those of its training; alone, where nothing else is said.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Inside, the first process is done before the others begin: what it has fetched is there for them."""
        if not self.is_first:
            dist.barrier()
        yield
        if self.is_first and self.count > 1:
            dist.barrier()

    def from_first(self, value: Value | None) -> Value:
        """What the first process has given."""
        held = [value]
        if self.count > 1:
            dist.broadcast_object_list(held)
        return held[0]  # type: ignore[return-value]

    def gathered(self, value: Value) -> list[Value]:
        """What each process has given, for the first one; the others get a list of no use."""
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def part(self, batches: Iterable[list[int]]) -> Iterator[list[int]]:
        """Of each batch the indices that are this process's; none is left out, and none is handed to two."""
        for batch in batches:
            if own := batch[self.rank :: self.count]:
                yield own

    def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as it is called in training: its gradients are the means over all processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)

    def gradients_kept(self, called: nn.Module, *, until_later: bool) -> AbstractContextManager[None]:
        """Context of a pass whose gradients are exchanged with those of a later one."""
        if until_later and isinstance(called, DistributedDataParallel):
            return called.no_sync()
        return nullcontext()

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all processes the first one's running statistics, which are those that are written."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


ALONE = Processes()


@contextmanager
def joined(chosen: torch.device | None) -> Iterator[tuple[Processes, torch.device | None]]:
    """This process among those that torchrun has started with it, and its device.

    Args:
        chosen: The device that the user has named; None for a GPU each, or else the CPU.

    Raises:
        UsageError: There is no GPU for each, or one device is named for all.
    """
    count = int(os.environ.get("WORLD_SIZE", "1")) if dist.is_available() and dist.is_torchelastic_launched() else 1
    if count == 1:
        yield ALONE, chosen
        return
    device = _device(chosen, int(os.environ["LOCAL_RANK"]), count)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Processes(dist.get_rank(), count), device
    dist.destroy_process_group()  # not after an error: the others may wait for this process, and end as it does


def _device(chosen: torch.device | None, place: int, count: int) -> torch.device:
    if chosen is not None and chosen.index is not None:
        raise UsageError(
            f"--device {chosen} is one device for {count} processes: leave it out, which gives each a GPU of its own, "
            f"or take --device {chosen.type}"
        )
    kind = chosen.type if chosen is not None else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and place >= torch.cuda.device_count():
        raise UsageError(
            f"there are more processes than GPUs ({torch.cuda.device_count()}) on this machine: start as many by "
            "torchrun --nproc-per-node, or take --device cpu"
        )
    return torch.device(kind, place) if kind == "cuda" else torch.device(kind)
