"""The buffers of a call: which ones it changed, what it saw in them before, and what it only read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.buffers.buffers_on_demand import kept_on_demand
from momentumnet.recompute.buffers.statistics_read import Learned, learned_of, reads_noted
from momentumnet.recompute.surroundings.generators import AS_IT_IS, bytes_on_host
from momentumnet.recompute.surroundings.uncompiled import is_compiled
from momentumnet.recompute.values.buffer_values import (
    COPIED_ANYWAY,
    Clones,
    Table,
    clones_of,
    give,
    make_as,
    tables_of,
    take_out,
    write_back,
)
from momentumnet.recompute.values.counters import version

_NO_NAMES: dict[str, bool] = {}


class _Before(NamedTuple):
    """A buffer in front of a call, its counter, and a copy."""

    owner: nn.Module
    name: str
    buffer: Tensor
    counter: int
    value: Tensor

    @property
    def is_written_unseen(self) -> bool:
        """Whether it holds something else now, though its counter has not moved; on a GPU nobody looks."""
        buffer, value = self.buffer, self.value
        if type(buffer) is not Tensor or type(value) is not Tensor or not buffer.is_floating_point():
            return False
        plain = buffer.is_cpu and buffer.layout == torch.strided and buffer.is_contiguous()
        if not plain or torch._C._functorch.is_functorch_wrapped_tensor(buffer) or buffer.shape != value.shape:
            return False
        return version(buffer) == self.counter and bytes_on_host(buffer) != bytes_on_host(value)


class Buffers:
    """Which buffers a call changed, what it saw in them before, and what it only read.

    Running statistics (all of torch's norm modules) change without a trace in the in-place counter, but their training
    forward does not read them, where it is torch's own, and nor does their block, as its first call has shown; other
    buffers (spectral norm's u) are compared by counter and identity, and their earlier value is kept where they
    changed, or may have without a trace (fused observers). Those that the call left as they were have to stay so until
    backward. Which names there were, and which of them were None, is known in any case: a first call may fill them, or
    register or delete some.
    """

    def __init__(self, owners: list[nn.Module]) -> None:
        self._owners = owners
        self._before: list[_Before] = []
        self._read: list[tuple[nn.Module, str, Tensor, int]] = []
        self._moved_unseen: set[int] = set()
        self._tables = tables_of(owners)
        # By name, whether it was None.
        self._names = [
            {name: buffer is None for name, buffer in table.items()} if table else _NO_NAMES for table in self._tables
        ]
        self._learned: Learned | None = None
        self._moving: list[nn.Module] = []
        self._is_watched = False
        if holding := [owner for owner, table in zip(owners, self._tables, strict=True) if table]:
            self._look_at(owners, holding)
        self._seen: list[tuple[nn.Module, str, Tensor]] = []
        self._running: Clones = []
        self._may_be_taken_back = False

    def _look_at(self, owners: list[nn.Module], holding: list[nn.Module]) -> None:
        self._moved_unseen = set(map(id, _moved_unseen(owners)))
        self._learned = learned = learned_of(owners[0])
        self._moving = moving = [owner for owner in holding if _only_moves(owner)]
        if not learned.knows(moving):
            self._is_watched = not any(map(is_compiled, owners))
            if not self._is_watched:
                learned.have_watched(moving)
        only_move = set(map(id, moving))
        keeps_some = self._is_watched or learned.places
        for owner in holding:
            only_moves = id(owner) in only_move
            if only_moves and not keeps_some:
                continue
            for name, buffer in owner._buffers.items():
                is_kept = not only_moves or self._is_watched or (id(owner), name) in learned.places
                if buffer is None or not is_kept:
                    continue
                if isinstance(owner, _NormBase) and not owner.training:
                    self._read.append((owner, name, buffer, version(buffer)))
                else:
                    self._before.append(_Before(owner, name, buffer, version(buffer), buffer.detach().clone()))

    def watched(self) -> AbstractContextManager[None]:
        """Context of the first run: of a block's first call it notes which running statistics the block reads."""
        if not self._is_watched or self._learned is None or not self._moving:
            return AS_IT_IS
        return reads_noted(self._moving, self._learned.places)

    def kept_for_another_first_run(self) -> None:
        """Keep the running statistics, too: what `put_back` needs."""
        moving = [
            buffer
            for owner in self._owners
            if _only_moves(owner)
            for buffer in owner._buffers.values()
            if buffer is not None
        ]
        self._may_be_taken_back = True
        self._running = clones_of(moving)

    def put_back(self) -> None:
        """As if the call had not been: every buffer is the tensor that it was, and holds what it held before."""
        make_as(self._owners, self._tables)
        write_back(self._running)
        for owner, name, value in self._seen:
            place = owner._buffers[name]
            if place is not None:
                give(place, value)

    def forget_running(self) -> None:
        self._running, self._tables = [], []

    def forget_unchanged(self) -> None:
        if not self._may_be_taken_back:
            self._tables = []
        if self._learned is not None and self._is_watched:
            self._learn(self._learned)
        if not self._before:
            return
        only_move = set(map(id, self._moving))
        learned = self._learned.places if self._learned is not None else ()
        for owner, name, buffer, counter, value in self._before:
            is_learned, only_moves = (id(owner), name) in learned, id(owner) in only_move
            if is_learned or (not only_moves and (version(buffer) != counter or id(owner) in self._moved_unseen)):
                self._seen.append((owner, name, value))
            elif not only_moves:
                self._read.append((owner, name, buffer, counter))
        self._before = []

    @property
    def norms_read(self) -> Sequence[nn.Module]:
        """Norms in training whose running statistics the block reads."""
        if self._learned is None or not self._learned.places:
            return ()
        owners = {number for number, _ in self._learned.places}
        return [norm for norm in self._moving if id(norm) in owners]

    def _learn(self, learned: Learned) -> None:
        """A call that was watched is over: which buffers it has moved past their counters."""
        only_move = set(map(id, self._moving))
        learned.places.update(
            (id(before.owner), before.name)
            for before in self._before
            if id(before.owner) not in only_move and before.is_written_unseen
        )
        learned.have_watched(self._moving)

    def check_unchanged(self, block: str) -> None:
        for _, name, buffer, counter in self._read:
            if version(buffer) != counter:
                raise ReconstructionError(
                    f"block {block!r}: buffer {name!r} was changed between forward and backward, so the gradient of "
                    "that forward cannot be computed any more; change it after backward (under DistributedDataParallel "
                    "a further forward does it: pass broadcast_buffers=False)"
                )

    def replayed(self, untouched: Sequence[nn.Module] = ()) -> AbstractContextManager[None]:
        """Context that runs with the buffers as the call saw them; whatever the run does to them is undone.

        Args:
            untouched: modules whose own calls leave their buffers alone: the values are kept only if somebody else
                asks for one of them.
        """
        found = any(self._names) or any(owner._buffers for owner in self._owners)
        return self._replayed(untouched) if found else AS_IT_IS

    @contextmanager
    def _replayed(self, untouched: Sequence[nn.Module]) -> Iterator[None]:
        tables = tables_of(self._owners)
        now = dict(zip(map(id, self._owners), tables, strict=True))
        # Another tensor stands there now: it was assigned anew, or torch.func.functional_call has taken it out.
        swapped = [
            (owner, name, buffer) for owner, name, buffer, _ in self._read if now[id(owner)].get(name) is not buffer
        ]
        seen = {(id(owner), name): (owner, value) for owner, name, value in (*self._seen, *swapped)}
        on_demand = {id(owner) for owner in untouched}
        current, later = self._split(tables, seen, on_demand)
        kept = clones_of(current)

        def keep() -> None:
            nonlocal later
            kept.extend(clones_of(later))
            later = []

        try:
            for owner, names, table in zip(self._owners, self._names, tables, strict=True):
                if table or names:
                    take_out(owner._buffers, names)
            self._give_again(seen, tables, now)
            with kept_on_demand(untouched, keep):
                yield
        finally:
            make_as(self._owners, tables)
            # What was kept later may lie in the memory of what was kept before, which is right.
            write_back(kept[::-1])

    def _give_again(
        self,
        seen: Mapping[tuple[int, str], tuple[nn.Module, Tensor]],
        tables: Sequence[Mapping[str, Tensor | None]],
        now: Mapping[int, Mapping[str, Tensor | None]],
    ) -> None:
        """Buffers with the values that the call saw in them; one under several names is one again.

        Each in a tensor of its own: the recompute may save it for backward, and must not see it put back.
        """
        again: dict[int, Tensor] = {}
        for (number, name), (owner, value) in seen.items():
            standing = now[number].get(name)
            key = id(value if standing is None else standing)
            owner._buffers[name] = again[key] = again[key] if key in again else value.clone()
        for owner, table in zip(self._owners, tables, strict=True) if again else ():
            for name, buffer in table.items():
                if id(buffer) in again and (id(owner), name) not in seen:
                    owner._buffers[name] = again[id(buffer)]

    def _split(
        self,
        tables: Sequence[Table],
        seen: Mapping[tuple[int, str], object],
        on_demand: Collection[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The buffers whose values are kept in a recompute: in any case, and if their table is asked for them.

        What others hold beside the table may be written to past it.
        """
        now: list[Tensor] = []
        later: list[Tensor] = []
        for owner, table in zip(self._owners, tables, strict=True):
            for name, buffer in table.items():
                # A large integer buffer changes only if its counter said so in forward; a count may have gone through
                # .data.
                if buffer is not None and (
                    buffer.is_floating_point() or buffer.numel() <= COPIED_ANYWAY or (id(owner), name) in seen
                ):
                    waits = id(owner) in on_demand and sys.getrefcount(buffer) <= _REFERENCES
                    (later if waits else now).append(buffer)
        return now, later


def _references() -> int:
    """How often a buffer is counted in `Buffers._split` that its own table and the one there alone hold."""
    owner = nn.Module()
    owner.register_buffer("alone", torch.zeros(1))
    for _, table in zip([owner], tables_of([owner]), strict=True):
        for _, buffer in table.items():
            return sys.getrefcount(buffer)
    return 0


_REFERENCES = _references()


def _only_moves(owner: nn.Module) -> bool:
    """Whether it is a norm in training that moves its statistics and does not read them: its forward is torch's."""
    if not (isinstance(owner, _NormBase) and owner.training):
        return False
    return isinstance(owner, torch.jit.ScriptModule) or type(owner).forward.__module__.startswith("torch.nn.modules.")


def _moved_unseen(owners: list[nn.Module]) -> list[nn.Module]:
    """Those whose buffers are written by kernels that count nothing.

    The observers of quantisation-aware training, by a fused one, and norms with a forward of their own that may read
    their statistics (batch renormalisation), by torch's.
    """
    norms: list[nn.Module] = [owner for owner in owners if isinstance(owner, _NormBase)]
    norms = [norm for norm in norms if norm.training and not _only_moves(norm)]
    fake_quantize = sys.modules.get("torch.ao.quantization.fake_quantize")
    fused = getattr(fake_quantize, "FusedMovingAvgObsFakeQuantize", None)
    if fused is None:
        return norms
    return norms + [module for owner in owners if isinstance(owner, fused) for module in owner.modules()]
